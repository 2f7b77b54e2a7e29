/// <reference path="./tags.d.ts" preserve="true" />
/**
 * Custom elements that follow a job without a line of script:
 *
 *     <outlast-job job="..."><outlast-progress></outlast-progress><outlast-text></outlast-text></outlast-job>
 *
 * `outlast-job` reflects the job in its attributes (`state`, `attempt`, `connection`) and fires `progress`, and at the
 * end `load`, `error` or `abort`, then `loadend`; besides, every event of the job as `outlast-event`. The other two
 * stand inside it and follow it.
 *
 * @import { JobEvent, ProgressData } from "./protocol.js"
 */

import { GatewayClient } from "./client.js";
import { JobMirror } from "./mirror.js";

// A server that renders a page imports this module too, and has no elements; there none is ever made.
const PageElement = globalThis.HTMLElement ?? /** @type {typeof HTMLElement} */ (class {});
const END_EVENTS = { succeeded: "load", failed: "error", cancelled: "abort" };

/** Follows the job that its attribute `job` names, for the elements inside it and for who listens. */
export class OutlastJob extends PageElement {
  static observedAttributes = ["job", "base", "transport"];

  /** What is known of the job, while one is followed. @type {JobMirror | null} */
  mirror = null;
  /** @type {AbortController | null} */
  #stop = null;
  /** @type {GatewayClient | null} */
  #client = null;

  /** A client of your own, such as one with a key; otherwise one is made from `base`. */
  get client() {
    this.#client ??= new GatewayClient(this.getAttribute("base") ?? undefined);
    return this.#client;
  }

  set client(client) {
    this.#client = client;
    this.#restart();
  }

  /** The id of the job to follow; empty for none. */
  get job() {
    return this.getAttribute("job") ?? "";
  }

  set job(id) {
    if (id) this.setAttribute("job", id);
    else this.removeAttribute("job");
  }

  connectedCallback() {
    // What was set before the element was defined hides what the class has under that name.
    for (const name of /** @type {const} */ (["client", "job"])) {
      if (!Object.hasOwn(this, name)) continue;
      const value = this[name];
      Reflect.deleteProperty(this, name);
      Object.assign(this, { [name]: value });
    }
    this.#restart();
  }

  disconnectedCallback() {
    this.#stop?.abort();
  }

  /** @param {string} name @param {string | null} before @param {string | null} value */
  attributeChangedCallback(name, before, value) {
    if (before === value) return;
    if (name === "base") this.#client = null;
    if (name === "transport" && this.mirror && value) this.mirror.use(this.#transport());
    else this.#restart();
  }

  /** Cut the present connection, to see the resume. */
  cut() {
    this.mirror?.subscription.cut();
  }

  #transport() {
    return this.getAttribute("transport") === "websocket" ? "websocket" : "sse";
  }

  #restart() {
    this.#stop?.abort();
    this.mirror = null;
    for (const name of ["state", "attempt", "connection"]) this.removeAttribute(name);
    if (!this.isConnected || !this.job) return;
    const stop = new AbortController();
    this.#stop = stop;
    const mirror = new JobMirror(this.client, this.job, {
      transport: this.#transport(),
      onevent: (event) => !stop.signal.aborted && this.#announce(event, mirror),
      onchange: () => {
        if (stop.signal.aborted) return;
        this.#reflect(mirror);
        this.dispatchEvent(new CustomEvent("outlast-change"));
      },
    });
    this.mirror = mirror;
    void mirror.run(stop.signal);
  }

  /** @param {JobMirror} mirror */
  #reflect(mirror) {
    const { fold, subscription } = mirror;
    reflect(this, "state", fold.state);
    reflect(this, "attempt", fold.attempt || null);
    reflect(this, "connection", subscription.state);
  }

  /** @param {JobEvent} event @param {JobMirror} mirror */
  #announce(event, mirror) {
    // Who hears of the end finds it in the attributes, too.
    this.#reflect(mirror);
    this.dispatchEvent(new CustomEvent("outlast-event", { detail: event, bubbles: true }));
    const { type, data } = event;
    if (type === "progress") this.dispatchEvent(progressEvent("progress", data));
    const end = END_EVENTS[/** @type {keyof typeof END_EVENTS} */ (type)];
    if (!end) return;
    this.dispatchEvent(progressEvent(end, mirror.fold.progress));
    this.dispatchEvent(progressEvent("loadend", mirror.fold.progress));
  }
}

/** Inside an `outlast-job`, or led by hand with the attributes `value`, `max` and `text`. */
export class OutlastProgress extends PageElement {
  static observedAttributes = ["value", "max", "text"];

  #bar = document.createElement("div");
  /** @type {(() => void) | null} */
  #leave = null;

  constructor() {
    super();
    const root = this.attachShadow({ mode: "open" });
    this.#bar.setAttribute("part", "bar");
    root.append(this.#bar);
    // Adopted, not written as <style>: a page's content security policy may forbid inline styles.
    if ("adoptedStyleSheets" in root && progressSheet) root.adoptedStyleSheets = [progressSheet];
  }

  connectedCallback() {
    if (!this.hasAttribute("role")) this.setAttribute("role", "progressbar");
    this.setAttribute("aria-valuemin", "0");
    this.#leave = follow(this, (mirror) => {
      const { current = null, total = null } = mirror.fold.progress ?? {};
      const done = mirror.fold.state === "succeeded";
      reflect(this, "max", total ?? (done ? 1 : null));
      reflect(this, "value", done ? (total ?? 1) : total === null ? null : current);
    });
    this.#show();
  }

  disconnectedCallback() {
    this.#leave?.();
  }

  attributeChangedCallback() {
    this.#show();
  }

  #show() {
    const value = this.getAttribute("value");
    const max = Number(this.getAttribute("max") ?? 1) || 1;
    // Without a value it is indeterminate, for eyes and for screen readers alike.
    reflect(this, "aria-valuenow", value);
    reflect(this, "aria-valuemax", value === null ? null : max);
    reflect(this, "aria-valuetext", this.getAttribute("text"));
    const share = value === null ? 0 : Math.min(1, Math.max(0, Number(value) / max));
    this.#bar.style.setProperty("--share", String(share));
  }
}

/** The text of one channel (`channel`, default "text") of the `outlast-job` around it. */
export class OutlastText extends PageElement {
  /** @type {(() => void) | null} */
  #leave = null;

  connectedCallback() {
    this.#leave = follow(this, (mirror) => {
      growText(this, mirror.fold.text[this.getAttribute("channel") ?? "text"] ?? "");
    });
  }

  disconnectedCallback() {
    this.#leave?.();
  }
}

/**
 * Show a text that mostly grows. Appending keeps the reader's selection; only a text that began anew replaces it.
 * @param {HTMLElement} element
 * @param {string} text
 */
export function growText(element, text) {
  const node = element.firstChild;
  if (!(node instanceof Text) || !text.startsWith(node.data)) element.textContent = text;
  else if (text.length > node.data.length) node.appendData(text.slice(node.data.length));
}

/**
 * Define the elements under their names; nothing happens to those that are defined already, nor where there is no page.
 * @param {CustomElementRegistry | undefined} [registry]
 */
export function defineElements(registry = globalThis.customElements) {
  const elements = { "outlast-job": OutlastJob, "outlast-progress": OutlastProgress, "outlast-text": OutlastText };
  for (const [name, element] of Object.entries(elements)) if (registry && !registry.get(name)) registry.define(name, element);
}

/**
 * Follow the job around an element.
 * @param {HTMLElement} element
 * @param {(mirror: JobMirror) => void} show
 */
function follow(element, show) {
  const job = /** @type {OutlastJob | null} */ (element.closest("outlast-job"));
  if (!job) return null;
  const update = () => job.mirror && show(job.mirror);
  job.addEventListener("outlast-change", update);
  update();
  return () => job.removeEventListener("outlast-change", update);
}

/** @param {Element} element @param {string} name @param {string | number | null} value */
function reflect(element, name, value) {
  const text = value === null ? null : String(value);
  if (element.getAttribute(name) === text) return;
  if (text === null) element.removeAttribute(name);
  else element.setAttribute(name, text);
}

/** @param {string} type @param {ProgressData | null} progress */
function progressEvent(type, progress) {
  const { current: loaded = 0, total = null } = progress ?? {};
  return new ProgressEvent(type, { lengthComputable: total !== null, loaded, total: total ?? 0 });
}

const progressSheet = styleSheet(`
  :host { display: block; height: 0.5rem; border-radius: 1rem; overflow: hidden; background: color-mix(in srgb, currentColor 15%, transparent); }
  :host([hidden]) { display: none; }
  [part="bar"] { height: 100%; width: 100%; background: currentColor; border-radius: inherit; transform-origin: left; transform: scaleX(var(--share)); transition: transform 0.3s ease-out; }
  :host(:not([value])) [part="bar"] { transform: scaleX(0.3); animation: outlast-wait 1.6s ease-in-out infinite alternate; }
  @keyframes outlast-wait { from { translate: 0 0 } to { translate: 70% 0 } }
  @media (prefers-reduced-motion: reduce) { [part="bar"] { transition: none; animation: none !important; } }
`);

/** @param {string} css */
function styleSheet(css) {
  try {
    const sheet = new CSSStyleSheet();
    sheet.replaceSync(css);
    return sheet;
  } catch {
    // A browser without constructable style sheets shows the bar by the page's own rules for ::part(bar).
    return null;
  }
}
