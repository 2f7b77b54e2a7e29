/**
 * A form for a kind's options, made from its JSON Schema (the part of it that pydantic writes for plain models).
 * What it can't draw becomes a field for JSON, so every kind can be used.
 *
 * @typedef {Record<string, any>} Schema
 * @typedef {{name: string, element: HTMLElement, control: HTMLElement, read: () => unknown}} Field `read` throws
 *   `SyntaxError` for bad JSON
 */

import { GatewayError } from "./errors.js";

// A kind names what matters most first; what comes after these is folded away, unless it is needed.
const FIRST_FIELDS = 3;

/**
 * @param {HTMLElement} container
 * @param {Schema} schema
 */
export function buildForm(container, schema) {
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).map(([name, property]) =>
    buildField(name, resolve(/** @type {Schema} */ (property), schema), schema, required.has(name)),
  );
  const rest = fields.slice(FIRST_FIELDS).filter(({ name }) => !required.has(name));
  container.replaceChildren(...fields.filter((field) => !rest.includes(field)).map(({ element }) => element));
  if (rest.length > 0) {
    const more = make("details", { className: "more" });
    const box = make("div", { className: "options" });
    box.append(...rest.map(({ element }) => element));
    more.append(make("summary", { textContent: "More options" }), box);
    container.append(more);
  }
  return {
    /**
     * What was filled in; what is empty is left out, so that the kind's own default holds. Throws a `GatewayError` that
     * names the field where one holds no JSON and should.
     * @returns {Record<string, unknown>}
     */
    read() {
      const values = fields.map((field) => /** @type {const} */ ([field.name, readField(field)]));
      return Object.fromEntries(values.filter(([, value]) => value !== undefined));
    },
    /** Show which fields are wrong, and lead to the first. @param {string[]} names such as `dpi`, or `list.0.dpi` for a part */
    mark(names) {
      const wrong = new Set(names.map((name) => name.split(".")[0]));
      const marked = fields.filter(({ name }) => wrong.has(name));
      for (const { control } of fields) control.removeAttribute("aria-invalid");
      for (const { control } of marked) control.setAttribute("aria-invalid", "true");
      const details = marked[0]?.element.closest("details");
      if (details) details.open = true;
      marked[0]?.control.focus();
    },
    hasRequired: required.size > 0,
  };
}

/** @param {Field} field */
function readField({ name, read }) {
  try {
    return read();
  } catch (error) {
    if (!(error instanceof SyntaxError)) throw error;
    const message = "this is no valid JSON";
    throw new GatewayError({ code: "invalid_input", detail: `${name}: ${message}.`, errors: [{ field: name, message }] }, { cause: error });
  }
}

/**
 * The schema that a property stands for: references followed, "or null" taken off.
 * @param {Schema} property
 * @param {Schema} root
 * @returns {Schema}
 */
export function resolve(property, root) {
  const { $ref, anyOf, allOf, ...own } = property;
  const reference = $ref ?? (allOf?.length === 1 ? allOf[0].$ref : undefined);
  if (typeof reference === "string") {
    const target = reference.replace(/^#\//, "").split("/").reduce((schema, step) => schema?.[step], /** @type {any} */ (root));
    return { ...resolve(target ?? {}, root), ...own };
  }
  const choices = (anyOf ?? []).filter((/** @type {Schema} */ choice) => choice.type !== "null");
  return choices.length === 1 ? { ...resolve(choices[0], root), ...own } : property;
}

/** @param {string} name @param {Schema} schema @param {Schema} root @param {boolean} required @returns {Field} */
function buildField(name, schema, root, required) {
  const label = labelOf(name, schema.title);
  const id = `option-${name}`;
  const choices = schema.enum ?? (schema.const === undefined ? null : [schema.const]);
  const items = schema.type === "array" ? resolve(schema.items ?? {}, root) : null;
  const control = choices
    ? choiceControl(choices, schema, required)
    : items?.enum
      ? manyControl(items.enum, schema)
      : schema.type === "boolean"
        ? booleanControl(schema)
        : schema.type === "integer" || schema.type === "number"
          ? numberControl(schema)
          : schema.type === "string"
            ? textControl(schema, required)
            : items?.type === "string"
              ? listControl(schema)
              : items?.type === "object" && name === "messages"
                ? chatControl()
                : jsonControl(schema);
  const element = wrap(control.element, id, label, schema.description, required);
  return { name, read: control.read, control: control.element, element };
}

/** A label somebody wrote, or the name as words: pydantic's own titles capitalise every one. @param {string} name @param {string} [title] */
function labelOf(name, title) {
  const words = name.replaceAll("_", " ");
  return title && title.toLowerCase() !== words.toLowerCase() ? title : words.charAt(0).toUpperCase() + words.slice(1);
}

/** @typedef {{element: HTMLElement, read: () => unknown}} Control */

/** @param {unknown[]} choices @param {Schema} schema @param {boolean} required @returns {Control} */
function choiceControl(choices, schema, required) {
  const element = make("select", { required });
  if (schema.default === undefined || schema.default === null) element.append(make("option", { value: "", textContent: required ? "Choose" : "Default" }));
  choices.forEach((choice, at) => element.append(make("option", { value: String(at), textContent: words(choice), selected: choice === schema.default })));
  return { element, read: () => (element.value === "" ? undefined : choices[Number(element.value)]) };
}

/** @param {unknown[]} choices @param {Schema} schema @returns {Control} */
function manyControl(choices, schema) {
  const element = make("fieldset", { className: "many" });
  const boxes = choices.map((choice) => {
    const label = make("label", { className: "check" });
    const box = make("input", { type: "checkbox", checked: (schema.default ?? []).includes(choice) });
    label.append(box, ` ${words(choice)}`);
    element.append(label);
    return { box, choice };
  });
  const chosen = () => boxes.filter(({ box }) => box.checked).map(({ choice }) => choice);
  return { element, read: () => (chosen().length ? chosen() : undefined) };
}

/** @param {Schema} schema @returns {Control} */
function booleanControl(schema) {
  const element = make("input", { type: "checkbox", checked: schema.default === true });
  return { element, read: () => (element.checked === (schema.default ?? false) ? undefined : element.checked) };
}

/** @param {Schema} schema @returns {Control} */
function numberControl(schema) {
  const limits = { min: schema.minimum ?? schema.exclusiveMinimum ?? "", max: schema.maximum ?? schema.exclusiveMaximum ?? "" };
  const step = schema.type === "integer" ? "1" : "any";
  const element = make("input", { type: "number", step, min: String(limits.min), max: String(limits.max), value: String(schema.default ?? "") });
  return { element, read: () => (element.value === "" ? undefined : Number(element.value)) };
}

/** @param {Schema} schema @param {boolean} required @returns {Control} */
function textControl(schema, required) {
  // A text that a kind can't do without is its matter, such as a prompt; the others are settings.
  const long = required && !(schema.maxLength <= 200) && !schema.format && !schema.pattern;
  const element = long ? make("textarea", { rows: 3, required }) : make("input", { type: schema.format === "uri" ? "url" : "text", required });
  element.value = String(schema.default ?? "");
  return { element, read: () => (element.value === "" ? undefined : element.value) };
}

/** @param {Schema} schema @returns {Control} */
function listControl(schema) {
  const element = make("input", { type: "text", value: (schema.default ?? []).join(", ") });
  const list = () => element.value.split(",").map((part) => part.trim()).filter(Boolean);
  return { element, read: () => (list().length ? list() : undefined) };
}

/** A chat in the shape that language models are asked in: most ask one thing. @returns {Control} */
function chatControl() {
  const element = make("textarea", { rows: 3, placeholder: "Your question, or a whole chat as JSON" });
  const text = () => element.value.trim();
  const asked = () => (text().startsWith("[") ? JSON.parse(text()) : [{ role: "user", content: text() }]);
  return { element, read: () => (text() === "" ? undefined : asked()) };
}

/** @param {Schema} schema @returns {Control} */
function jsonControl(schema) {
  const given = schema.default === undefined || schema.default === null ? "" : JSON.stringify(schema.default);
  const element = make("textarea", { rows: 2, value: given, spellcheck: false, placeholder: "JSON" });
  return { element, read: () => (element.value.trim() === "" ? undefined : JSON.parse(element.value)) };
}

/** @param {HTMLElement} control @param {string} id @param {string} label @param {string | undefined} hint @param {boolean} required */
function wrap(control, id, label, hint, required) {
  const field = make("div", { className: "field" });
  const text = make(control instanceof HTMLFieldSetElement ? "legend" : "label", { textContent: required ? `${label} (needed)` : label });
  control.id = id;
  if (text instanceof HTMLLabelElement) text.htmlFor = id;
  if (control instanceof HTMLFieldSetElement) {
    control.prepend(text);
    field.append(control);
  } else if (control instanceof HTMLInputElement && control.type === "checkbox") {
    field.classList.add("check");
    field.append(control, text);
  } else field.append(text, control);
  if (hint) {
    const description = make("p", { className: "hint", id: `${id}-hint` });
    // Descriptions name values between backticks.
    description.append(...hint.split("`").map((part, at) => (at % 2 ? make("code", { textContent: part }) : part)));
    control.setAttribute("aria-describedby", description.id);
    field.append(description);
  }
  return field;
}

/** @param {unknown} value */
function words(value) {
  return typeof value === "string" ? value.replaceAll("_", " ") : JSON.stringify(value);
}

/**
 * An element with properties; text goes in as `textContent`, never as markup.
 * @template {keyof HTMLElementTagNameMap} Name
 * @param {Name} name
 * @param {Partial<HTMLElementTagNameMap[Name]>} [properties]
 * @returns {HTMLElementTagNameMap[Name]}
 */
export function make(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}
