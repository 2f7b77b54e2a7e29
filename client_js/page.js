/**
 * The product page: choose the work and the file, follow the job, find recent ones. The job's id (`?job=`), or the kind
 * that was chosen (`?kind=`), is in the address, so a reload, a bookmark or another device shows the same.
 *
 * @typedef {import("./page-kinds.js").Kind} Kind
 * @typedef {import("./protocol.js").JobDocument} JobDocument
 */

import { Backoff, pause } from "./backoff.js";
import { GatewayClient } from "./client.js";
import { defineElements } from "./elements.js";
import { GatewayError } from "./errors.js";
import { buildForm, make } from "./page-form.js";
import { JobView } from "./page-job.js";
import { offered } from "./page-kinds.js";
import { ago, counted, errorPhrase, size, STATE_WORDS } from "./page-phrases.js";

const KEY = "outlast-key";
const REFRESH_MS = 10_000;

/** @param {string} id @returns {any} */
const by = (id) => document.getElementById(id);

const client = new GatewayClient(location.origin, { apiKey: () => sessionStorage.getItem(KEY) });

/** @type {Map<string, Kind>} */
let kinds = new Map();
/** @type {Kind | null} */
let kind = null;
/** @type {ReturnType<typeof buildForm> | null} */
let form = null;
/** @type {File[]} */
let files = [];
/** @type {string | null} */
let olderJobs = null;

const view = new JobView({
  client,
  hasKey: () => sessionStorage.getItem(KEY) !== null,
  onrefusal(error, retry) {
    if (!(error instanceof GatewayError) || error.status !== 401) return false;
    void askKey().then(retry);
    return true;
  },
  onend: () => void showRecent(),
  onjob: (job) => go(job.id, job),
  hasWorker: (name) => kinds.get(name)?.workers !== 0,
});

// --- the key ------------------------------------------------------------------------------------------------------------

/** @type {Promise<void> | null} */
let asking = null;

/** Ask for an API key; several requests that were refused at once ask once. */
function askKey() {
  asking ??= new Promise((resolve) => {
    const dialog = by("key-dialog");
    by("key-problem").hidden = sessionStorage.getItem(KEY) === null;
    by("key").value = "";
    dialog.addEventListener(
      "close",
      () => {
        if (by("key").value) sessionStorage.setItem(KEY, by("key").value.trim());
        asking = null;
        resolve(undefined);
      },
      { once: true },
    );
    dialog.addEventListener("cancel", (/** @type {Event} */ event) => event.preventDefault());
    dialog.showModal();
  });
  return asking;
}

/** Do something that may need a key. @template T @param {() => Promise<T>} work @returns {Promise<T>} */
async function withKey(work) {
  for (;;) {
    try {
      return await work();
    } catch (error) {
      if (!(error instanceof GatewayError) || error.status !== 401) throw error;
      await askKey();
    }
  }
}

// --- where we are -------------------------------------------------------------------------------------------------------

/** @param {"job" | "kind"} name */
const inAddress = (name) => new URLSearchParams(location.search).get(name);

/** Show what the address says. */
function route() {
  const id = inAddress("job");
  if (id) {
    show("job");
    view.open(id);
  } else {
    view.close();
    show("start");
    const name = inAddress("kind");
    if (name && name !== kind?.kind) choose(name);
    document.title = "Outlast";
    void showRecent();
  }
}

/** @param {"start" | "job"} name */
function show(name) {
  by("start").hidden = name !== "start";
  by("job").hidden = name !== "job";
  by("new-job").hidden = name !== "job";
}

/** What had the focus is gone; the new view's heading is where a screen reader should go on. */
function focusHeading() {
  const heading = by(by("job").hidden ? "start-title" : "job-title");
  heading.tabIndex = -1;
  heading.focus({ preventScroll: true });
}

/** @param {string | null} id @param {JobDocument} [known] */
function go(id, known) {
  history.pushState(null, "", id ? `?job=${encodeURIComponent(id)}` : location.pathname);
  if (id && known) {
    show("job");
    view.open(id, known);
  } else route();
  window.scrollTo(0, 0);
  focusHeading();
}

/** @param {unknown} error */
function showTrouble(error) {
  by("trouble").textContent = error === null ? "" : errorPhrase(error);
  by("trouble").hidden = error === null;
}

// --- composing a job ------------------------------------------------------------------------------------------------------

/** @param {Kind[]} found */
function showKinds(found) {
  const choices = found.map(({ kind: name, description }) => {
    const label = make("label", { title: description });
    const input = make("input", { type: "radio", name: "kind", value: name });
    input.addEventListener("change", () => {
      history.replaceState(null, "", `?kind=${encodeURIComponent(name)}`);
      choose(name);
    });
    label.append(input, make("span", { textContent: name }));
    return label;
  });
  by("kinds").append(...choices);
  by("kinds").hidden = choices.length < 2;
}

/** @param {string} name */
function choose(name) {
  const chosen = kinds.get(name);
  if (!chosen) return;
  kind = chosen;
  by("compose").hidden = false;
  for (const input of by("kinds").querySelectorAll("input")) input.checked = input.value === name;
  by("kind-description").textContent = kind.description;
  by("no-worker").hidden = kind.workers !== 0;
  by("drop").hidden = kind.files === "none";
  by("drop").classList.toggle("small", kind.files === "optional");
  by("drop-what").textContent = takesDocuments(kind.content_types ?? []) ? "Drop a document here" : "Drop a file here";
  by("file").accept = (kind.content_types ?? []).join(",");
  by("file-hint").textContent = typesHint(kind.content_types ?? []);
  form = buildForm(by("options"), kind.input_schema ?? {});
  files = [];
  showFiles();
  showProblem(null);
}

/** @param {string[]} types */
function typesHint(types) {
  const names = types.map((type) => {
    const [group, name = ""] = type.split("/");
    return name === "*" ? `${group}s` : name.replace(/^x-|\+.*$/g, "").toUpperCase();
  });
  return names.length ? `Reads ${[...new Set(names)].join(", ")}.` : "";
}

/** @param {string[]} types */
function takesDocuments(types) {
  return types.some((type) => type === "application/pdf" || type.startsWith("image/"));
}

/** A kind that needs nothing but its file starts with the file: one drop, one job. */
function startsByFile() {
  return kind?.files === "required" && !form?.hasRequired;
}

/** @param {Iterable<File>} chosen */
function take(chosen) {
  if (!kind) return;
  if (kind.files === "none") {
    const others = Array.from(by("kinds").querySelectorAll("input"), ({ value }) => value).filter((name) => kinds.get(name)?.files !== "none");
    return showProblem(new Error(`${kind.kind} takes no files${others.length ? `; choose ${others.join(" or ")} for that` : ""}.`));
  }
  files = [...chosen];
  showFiles();
  if (files.length && startsByFile()) void submit();
}

function showFiles() {
  by("files").replaceChildren(...files.map((file) => make("li", { textContent: `${file.name}, ${size(file.size)}` })));
  by("submit-row").hidden = !kind || startsByFile();
}

/** @param {unknown} error */
function showProblem(error) {
  const problem = by("compose-problem");
  problem.textContent = error === null ? "" : errorPhrase(error);
  problem.hidden = error === null;
  const wrong = error instanceof GatewayError ? (error.problem.errors ?? []) : [];
  form?.mark(wrong.map(({ field = "" }) => field.replace(/^input\./, "")));
  if (error !== null) problem.scrollIntoView({ block: "nearest" });
}

async function submit() {
  if (!kind || !form) return;
  const { kind: name, files: need } = kind;
  const sent = files;
  try {
    if (need === "required" && sent.length === 0) throw new Error("Choose a file first.");
    const input = form.read();
    showProblem(null);
    const job = await withKey(() => send(name, input, sent));
    go(job.id, job);
  } catch (error) {
    show("start");
    showProblem(error);
  } finally {
    files = [];
    showFiles();
  }
}

/** @param {string} name @param {Record<string, unknown>} input @param {File[]} sent */
async function send(name, input, sent) {
  const stop = new AbortController();
  const stopped = new Error("The upload was stopped; nothing was submitted.");
  const label = sent.map((file) => file.name).join(", ");
  let onUploadProgress;
  if (sent.length) {
    show("job");
    onUploadProgress = view.upload(name, label, () => stop.abort(stopped));
  }
  return client.submit(name, { input, files: sent, signal: stop.signal, onUploadProgress });
}

function listen() {
  by("compose").addEventListener("submit", (/** @type {Event} */ event) => {
    event.preventDefault();
    void submit();
  });
  for (const id of ["file", "photo"]) {
    by(id).addEventListener("change", () => {
      take(by(id).files);
      by(id).value = "";
    });
  }
  document.addEventListener("paste", (event) => {
    const pasted = [...(event.clipboardData?.files ?? [])];
    if (pasted.length === 0 || by("start").hidden) return;
    event.preventDefault();
    take(pasted);
  });
  const drop = by("drop");
  // The whole page takes the drop: a near miss must not open the file in place of the page.
  document.addEventListener("dragover", (event) => {
    if (!event.dataTransfer?.types.includes("Files")) return;
    event.preventDefault();
    drop.classList.add("over");
  });
  for (const type of ["dragleave", "drop"]) document.addEventListener(type, () => drop.classList.remove("over"));
  document.addEventListener("drop", (event) => {
    if (!event.dataTransfer?.files.length) return;
    event.preventDefault();
    if (by("start").hidden) go(null);
    take(event.dataTransfer.files);
  });
  for (const id of ["new-job", "home"]) {
    by(id).addEventListener("click", (/** @type {MouseEvent} */ event) => {
      if (event.ctrlKey || event.metaKey || event.shiftKey) return;
      event.preventDefault();
      go(null);
    });
  }
  by("recent-more").addEventListener("click", () => void showRecent(olderJobs));
  window.addEventListener("popstate", route);
  document.addEventListener("visibilitychange", () => void refresh());
  setInterval(() => void refresh(), REFRESH_MS);
}

// --- recent jobs ------------------------------------------------------------------------------------------------------------

async function refresh() {
  // Only where somebody looks at it and something can still change.
  if (document.hidden || by("start").hidden || !by("recent").querySelector("[data-open]")) return;
  await showRecent();
}

/** @param {string | null} [cursor] */
async function showRecent(cursor = null) {
  if (by("start").hidden) return;
  try {
    const page = await withKey(() => client.jobs({ limit: 12, cursor: cursor ?? undefined }));
    const rows = page.jobs.map(jobRow);
    if (cursor) by("recent").append(...rows);
    else by("recent").replaceChildren(...rows);
    olderJobs = page.cursor ?? null;
    by("recent-more").hidden = olderJobs === null;
    by("recent-empty").hidden = by("recent").children.length > 0;
  } catch {
    // The list is a convenience; what really fails says so where it matters.
  }
}

/** @param {JobDocument} job */
function jobRow(job) {
  const row = make("li");
  const link = make("a", { href: `?job=${encodeURIComponent(job.id)}` });
  const name = job.files?.map((file) => file.name).join(", ") || `${job.kind} job`;
  const chip = make("span", { className: "chip", textContent: STATE_WORDS[job.state] ?? job.state });
  chip.dataset.state = job.state;
  const { current, total, unit } = job.progress ?? {};
  const progress = !job.terminal && total ? ` · ${current} of ${counted(total, unit ?? "", unit ?? "")}` : "";
  const what = job.files?.length ? `${job.kind} · ` : "";
  const hint = make("span", { className: "hint", textContent: `${what}${ago(job.created_at, Date.now())}${progress}` });
  link.append(make("span", { className: "name", textContent: name }), chip, hint);
  link.addEventListener("click", (event) => {
    if (event.ctrlKey || event.metaKey || event.shiftKey) return;
    event.preventDefault();
    go(job.id, job);
  });
  row.append(link);
  if (!job.terminal) row.dataset.open = "";
  return row;
}

// --- start ------------------------------------------------------------------------------------------------------------------

async function loadKinds() {
  const { kinds: known } = await withKey(() => client.kinds());
  const named = inAddress("kind");
  const found = offered(known, named);
  const first = found.find(({ kind }) => kind === named) ?? found[0];
  if (!first) throw new Error("No kind of work is known yet; start a worker. This page will notice.");
  kinds = new Map(known.map((one) => [one.kind, one]));
  showKinds(found);
  choose(first.kind);
}

/** What is missing now may come: the gateway, or its first worker. @param {unknown} error */
async function loadKindsLater(error) {
  const backoff = new Backoff();
  for (;;) {
    showTrouble(error);
    const retryAfterMs = error instanceof GatewayError ? error.retryAfterMs : null;
    if (error instanceof GatewayError && !error.mayPass) return;
    await pause(backoff.nextMs(retryAfterMs));
    try {
      await loadKinds();
      return showTrouble(null);
    } catch (again) {
      error = again;
    }
  }
}

defineElements();
listen();
const loading = loadKinds().catch((error) => void loadKindsLater(error));
// A job that the address names goes on without them; only the note that nobody serves its kind comes later.
if (inAddress("job") === null) await loading;
route();
await loading;
view.redraw();
