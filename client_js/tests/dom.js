/** A document for the tests of elements and hooks: jsdom's, put where a browser has it. */

// @ts-expect-error: its types are not worth another package
import { JSDOM } from "jsdom";

const { window } = new JSDOM("<!doctype html><body></body>", { url: "http://127.0.0.1/", pretendToBeVisual: true });
const names = ["window", "navigator", "document", "customElements", "HTMLElement", "Text", "Node", "ProgressEvent", "CustomEvent", "Event", "HTMLFieldSetElement", "HTMLInputElement", "HTMLLabelElement"];
for (const name of names) {
  Object.defineProperty(globalThis, name, { value: name === "window" ? window : window[name], configurable: true, writable: true });
}
