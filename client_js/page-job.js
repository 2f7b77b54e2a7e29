/**
 * The view of one job: what it does, how its connection does, what it has brought so far.
 *
 * @import { JobDocument, JobEvent, OutputEvent } from "./protocol.js"
 * @import { TransportName } from "./transports.js"
 */

import { openWebSocket } from "./transports.js";
import { GatewayError } from "./errors.js";
import { JobMirror } from "./mirror.js";
import { DocumentView } from "./page-document.js";
import { make } from "./page-form.js";
import { OcrPages } from "./page-ocr.js";
import { drawRest, dropChannels, followEnd } from "./page-rest.js";
import { counted, duration, errorPhrase, progressPhrase, queuePhrase, size, STATE_WORDS, workerPhrase } from "./page-phrases.js";
import { Tally } from "./page-tally.js";

// Long enough to be seen; the network's own cuts are resumed faster.
const CUT_PAUSE_MS = 1500;
const ANNOUNCE_EVERY_MS = 8000;
const MAX_LOG_LINES = 100;
const NO_WORKER = "No worker serves this kind at the moment. The job is kept, and starts when one comes.";

/** @param {string} id @returns {any} */
const by = (id) => document.getElementById(id);

export class JobView {
  /** @type {JobMirror | null} */
  mirror = null;
  /** @type {AbortController} */
  #stop = new AbortController();
  #pages = new OcrPages();
  #tally = new Tally();
  #title = "";
  #kind = "";
  #drawing = false;
  #announcedAt = 0;
  #estimateAt = 0;
  #wasOpen = false;
  /** @type {"cut" | "switch" | null} */
  #lastCut = null;
  /** @type {number | null} the last event before the connection ended */
  #lostAfter = null;
  /** @type {Set<string>} keys of the pages that changed since the last drawing */
  #changed = new Set();
  /** @type {string[]} addresses that hold an image in memory */
  #objectUrls = [];
  /** @type {number | null} when its first attempt began, and when it ended, on the server's clock */
  #beganAt = null;
  /** @type {number | null} */
  #endedAt = null;
  #cancelling = false;

  /**
   * @param {object} page
   * @param {import("./client.js").GatewayClient} page.client
   * @param {() => boolean} page.hasKey
   * @param {(error: unknown, retry: () => void) => boolean} page.onrefusal whether the page asks for a key instead
   * @param {() => void} page.onend
   * @param {(job: JobDocument) => void} page.onjob another job is to be shown
   * @param {(kind: string) => boolean} page.hasWorker
   */
  constructor(page) {
    this.page = page;
    this.document = new DocumentView({
      documentPane: by("document"),
      textPane: by("text"),
      showImage: (url, image) => void this.#showImage(url, image),
      onscroll: () => this.#follow(false),
    });
    by("follow").addEventListener("change", () => this.#follow(by("follow").checked));
    by("cut").addEventListener("click", () => this.#cut());
    by("cancel").addEventListener("click", () => void this.#cancel());
    by("again").addEventListener("click", () => void this.#again());
    by("copy").addEventListener("click", () => void this.#copy());
    for (const input of document.querySelectorAll("input[name=transport]")) {
      input.addEventListener("change", () => this.#switch(/** @type {any} */ (input).value));
    }
    for (const input of document.querySelectorAll("input[name=pane]")) {
      input.addEventListener("change", () => (by("split").dataset.pane = /** @type {any} */ (input).value));
    }
    // Durations tick on this page; everything else is drawn when an event comes.
    setInterval(() => this.mirror && !document.hidden && this.#drawClock(), 1000);
    document.addEventListener("visibilitychange", () => this.#changedSoon());
  }

  /**
   * Follow a job, from its first event on.
   * @param {string} id
   * @param {Partial<JobDocument>} [known]
   */
  open(id, known = {}) {
    this.close();
    this.#stop = new AbortController();
    const { signal } = this.#stop;
    this.#describe(known);
    const mirror = new JobMirror(this.page.client, id, {
      transport: this.#transport(),
      onevent: (event) => this.#take(event),
      onoutput: (event) => void this.#takeOutput(event),
      onchange: () => this.#changedSoon(),
    });
    this.mirror = mirror;
    void mirror.run(signal).then(() => signal.aborted || this.#ended(mirror));
    if (!known.kind) {
      this.page.client.job(id, { signal }).then((job) => this.#describe(job), () => {});
    }
    this.#changedSoon();
  }

  /** Show that a file is on its way. @param {string} kind @param {string} name @param {() => void} oncancel */
  upload(kind, name, oncancel) {
    this.close();
    this.#title = name;
    if (kind === "ocr") by("job").dataset.layout = "pages";
    this.#drawTitle();
    const cancel = by("cancel");
    cancel.hidden = false;
    cancel.disabled = false;
    cancel.onclick = oncancel;
    by("job-state").textContent = "Uploading";
    by("job-state").dataset.state = "running";
    by("wire").parentElement.hidden = true;
    return (/** @type {{loaded: number, total: number}} */ { loaded, total }) => {
      reflectBar(loaded, total, "");
      by("progress-done").textContent = `${Math.floor((100 * loaded) / (total || 1))} % sent`;
      by("progress-left").textContent = `${size(loaded)} of ${size(total)}`;
    };
  }

  close() {
    this.#stop.abort();
    this.mirror = null;
    this.#pages = new OcrPages();
    this.#tally = new Tally();
    this.#kind = "";
    this.#changed.clear();
    this.#wasOpen = false;
    this.#lostAfter = null;
    this.#lastCut = null;
    this.#beganAt = this.#endedAt = null;
    this.#cancelling = false;
    this.document.clear();
    for (const url of this.#objectUrls.splice(0)) URL.revokeObjectURL(url);
    by("job").dataset.layout = "plain";
    delete by("job").dataset.over;
    by("cancel").onclick = null;
    by("again").hidden = true;
    by("wire").parentElement.hidden = false;
    for (const id of ["downloads", "log"]) by(id).replaceChildren();
    for (const id of ["progress-done", "progress-left", "worker", "job-state"]) by(id).textContent = "";
    by("log-card").open = false;
    by("bar").className = "";
    reflectBar(null, null, "");
    this.#note("");
    this.#follow(true);
  }

  /** Draw again: what is known besides the job's events has changed. */
  redraw() {
    this.#changedSoon();
  }

  #transport() {
    const chosen = document.querySelector("input[name=transport]:checked");
    return /** @type {TransportName} */ (/** @type {any} */ (chosen).value);
  }

  /** @param {Partial<JobDocument>} job */
  #describe(job) {
    if (!job.kind) return;
    this.#kind = job.kind;
    this.#title = job.files?.map(({ name }) => name).join(", ") || `${job.kind} job`;
    if (job.kind === "ocr") by("job").dataset.layout = "pages";
    this.#drawTitle();
    this.#changedSoon();
  }

  /** @param {JobEvent} event */
  #take(event) {
    this.#tally.take(event);
    const { type, data } = event;
    if (type === "started") this.#beganAt ??= Date.parse(event.time ?? "");
    if (event.terminal) this.#endedAt = Date.parse(event.time ?? "");
    if (type === "progress") this.#estimateAt = Date.now();
    else if (type === "log") this.#log(String(data.message), data.level);
    else if (type === "reset") this.#startOver(String(data.reason));
    else if (type === "cancel_requested") this.#log("Asked to cancel");
    else if (type === "closing") this.#log(`The gateway ends this connection by plan (${data.reason})`);
    else if (type === "retrying") {
      const when = data.delay_seconds > 0 ? `again in ${duration(data.delay_seconds)}` : "again at once";
      this.#log(`Attempt ${event.attempt} stopped: ${data.problem?.detail ?? data.problem?.code}; ${when}`, "warning");
    } else if (type === "started") {
      const again = (event.attempt ?? 1) > 1;
      this.#log(again ? `Attempt ${event.attempt} began; finished pages are kept` : "A worker began");
      if (again) for (const page of this.#pages.restart()) this.#changed.add(page.key);
      this.#announceSometimes("A worker began");
    }
  }

  /** @param {string} reason */
  #startOver(reason) {
    this.#log(`A part of the log is gone (${reason}); a snapshot takes its place`, "warning");
    this.#pages = new OcrPages();
    this.#changed.clear();
    this.document.clear();
  }

  /** @param {OutputEvent} event */
  async #takeOutput({ data }) {
    const { signal } = this.#stop;
    if (!OcrPages.knows(data.index)) return;
    // A page too large for an event travels as an address.
    if (data.value === undefined && data.url && !data.index.endsWith(".image")) {
      try {
        const response = await this.page.client.request(data.url, { signal });
        data = { ...data, value: await response.json() };
      } catch (error) {
        if (signal.aborted) return;
        data = { ...data, value: { problem: { detail: errorPhrase(error) } } };
      }
    }
    const page = this.#pages.take(data.index, data);
    if (!page || signal.aborted) return;
    by("job").dataset.layout = "pages";
    this.#changed.add(page.key);
    if (page.finished) this.#announceSometimes(`${page.label} is read, ${counted(page.lines.length, "line")}`);
    this.#changedSoon();
  }

  // --- drawing ------------------------------------------------------------------------------------------------------

  /** Draw once per frame, however many events come; a hidden page draws when it is seen again. */
  #changedSoon() {
    if (this.#drawing) return;
    this.#drawing = true;
    requestAnimationFrame(() => {
      this.#drawing = false;
      if (this.mirror) this.#draw(this.mirror);
    });
  }

  /** @param {JobMirror} mirror */
  #draw(mirror) {
    const { fold, subscription, error } = mirror;
    const isUnknown = error !== null && fold.state === null;
    if (isUnknown) by("job").dataset.layout = "none";
    this.#drawConnection(mirror);
    this.#drawPages();
    this.#drawRest(mirror);
    const state = fold.state ?? "queued";
    by("job-state").textContent = isUnknown ? "" : (STATE_WORDS[state] ?? state);
    by("job-state").dataset.state = state;
    const isCancelling = fold.cancelRequested || this.#cancelling;
    by("cancel").hidden = fold.terminal || fold.state === null;
    by("cancel").disabled = isCancelling;
    by("cancel").textContent = isCancelling ? "Cancelling…" : "Cancel";
    by("again").hidden = !fold.terminal || fold.state === "succeeded";
    const over = fold.terminal || subscription.state === "ended";
    if (over) by("job").dataset.over = "";
    by("cut").parentElement.hidden = over;
    by("follow").parentElement.hidden = over;
    this.#drawBar(mirror);
    this.#drawNote(mirror);
    this.#drawTally(mirror);
    this.#drawClock();
  }

  #drawPages() {
    if (this.#changed.size === 0) return;
    const all = this.#pages.sorted();
    for (const page of all) {
      if (this.#changed.has(page.key)) this.document.update(page);
    }
    this.#changed.clear();
    // Pages are read side by side; the view stays with the first that is not finished instead of jumping between them.
    const reading = all.find(({ finished }) => !finished) ?? all.at(-1);
    if (reading && !this.mirror?.fold.terminal) this.document.follow(reading);
  }

  /** What is no page: a job's texts, its outputs, its result. @param {JobMirror} mirror */
  #drawRest({ fold, outputs }) {
    const pane = by("text");
    const isPlain = by("job").dataset.layout === "plain";
    // The result of the kind `ocr` is its pages; what a pipeline makes of them is shown below them.
    if (!isPlain && (!this.#kind || this.#kind === "ocr")) return;
    const draw = () => drawRest(() => this.document.rest(), fold, outputs);
    dropChannels(pane, fold);
    if (isPlain && !fold.terminal) followEnd(pane, draw);
    else draw();
    if (this.#pages.pages.size && fold.state === "succeeded") this.document.showRest();
  }

  /** @param {JobMirror} mirror */
  #drawBar({ fold, error }) {
    const { current = null, total = null } = fold.progress ?? {};
    by("bar").className = fold.state ?? "";
    const { done } = progressPhrase(fold.progress, 0);
    if (fold.state === "succeeded") reflectBar(1, 1, "Done");
    else if (error && fold.state === null) reflectBar(0, 1, "");
    else if (fold.terminal) reflectBar(current ?? 0, total ?? 1, STATE_WORDS[fold.state ?? ""] ?? "");
    else if (fold.state === "queued" || total === null) reflectBar(null, null, done || "Waiting");
    else reflectBar(current, total, done);
  }

  /** @param {JobMirror} mirror */
  #drawNote(mirror) {
    const { fold, error } = mirror;
    const problem = fold.end.problem;
    if (error) this.#note(errorPhrase(error), "bad");
    else if (fold.state === "failed") this.#note(`${problem?.detail || problem?.title || "The job failed."} (${problem?.code})`, "bad");
    else if (fold.state === "cancelled") this.#note(by("text").hasChildNodes() ? "Cancelled. What had come before stays on this page." : "Cancelled before anything came.", "calm");
    else if (fold.end.partial) this.#note("Some pages could not be read; the others are complete.");
    else if (fold.state === "queued" && !this.page.hasWorker(this.#kind)) this.#note(NO_WORKER);
    else this.#note("");
  }

  /** @param {JobMirror} mirror */
  #drawTally({ subscription }) {
    const { received, missed, repeated } = this.#tally;
    const counts = { received, missed, repeated: repeated + subscription.repeated, reconnects: subscription.reconnects };
    for (const [name, count] of Object.entries(counts)) {
      const element = by(`tally-${name}`);
      const text = count.toLocaleString("en");
      if (element.textContent !== text) element.textContent = text;
      element.classList.toggle("bad", count > 0 && (name === "missed" || name === "repeated"));
    }
  }

  /** @param {JobMirror} mirror */
  #drawConnection({ subscription, fold }) {
    const { state, nextTryAt } = subscription;
    const name = subscription.transport === openWebSocket ? "WebSocket" : "SSE";
    const open = state === "open";
    if (open && !this.#wasOpen) this.#connected(name);
    if (!open && this.#wasOpen && state !== "ended") this.#disconnected(subscription.lastError);
    this.#wasOpen = open;
    const wait = nextTryAt === null ? 0 : Math.max(0, (nextTryAt - Date.now()) / 1000);
    const words = {
      idle: "Connecting",
      connecting: `Connecting over ${name}`,
      open: `Streaming over ${name}`,
      waiting: `${this.#lastCut === "cut" ? "You cut the connection" : "Connection lost"}, back in ${wait.toFixed(1)} s`,
      ended: fold.terminal ? "Complete, nothing more to come" : "Not connected",
    };
    by("wire-text").textContent = words[state];
    by("wire").dataset.state = state === "ended" && !fold.terminal ? "waiting" : state;
    // The countdown has to move while nothing else happens.
    if (state === "waiting") this.#changedSoon();
  }

  #drawClock() {
    const mirror = this.mirror;
    if (!mirror) return;
    const { fold, worker, subscription } = mirror;
    const age = mirror.silentSeconds();
    const phrase = workerPhrase({ age, late: worker?.late ?? false, connected: subscription.state === "open" });
    by("worker").textContent = phrase.text;
    by("worker").dataset.level = phrase.level;
    by("worker").title = worker ? `worker ${worker.worker}` : "";
    const etaAge = (Date.now() - this.#estimateAt) / 1000;
    const lines = this.#pages.lineCount;
    const pages = this.#pages.pages.size;
    // Where there are pages, they show what a message would say.
    const progress = fold.progress && { ...fold.progress, ...(pages && { message: "" }) };
    const isHeard = phrase.level === "alive" || phrase.level === "none";
    const { done, left } = progressPhrase(fold.terminal ? null : progress, etaAge, !isHeard);
    const read = lines ? counted(lines, "line") : "";
    const seconds = this.#beganAt && this.#endedAt ? (this.#endedAt - this.#beganAt) / 1000 : 0;
    const took = seconds >= 0.5 ? `took ${duration(seconds)}` : "";
    const waits = mirror.error && fold.state === null ? "" : queuePhrase(mirror.position);
    const where = fold.terminal ? (pages ? counted(pages, "page") : "") : fold.state === "running" ? done : waits;
    by("progress-done").textContent = [where, read, fold.terminal && took].filter(Boolean).join(" · ");
    by("progress-left").textContent = left;
    this.#drawTitle();
  }

  #drawTitle() {
    const { current = 0, total = null } = this.mirror?.fold.progress ?? {};
    const running = this.mirror?.fold.state === "running";
    const share = running && total ? `${Math.floor((100 * current) / total)} % · ` : "";
    by("job-title").textContent = this.#title || "Job";
    document.title = `${share}${this.#title || "Job"} · Outlast`;
  }

  // --- what happens to the connection and the job ---------------------------------------------------------------------

  /** @param {string} name */
  #connected(name) {
    if (this.#lostAfter === null) return this.#log(`Connected over ${name}`);
    const text = `Resumed over ${name} after event ${this.#lostAfter.toLocaleString("en")}, ${this.#tally.missed} missed`;
    this.#log(text);
    this.#announce(text);
    this.#lastCut = null;
  }

  /** @param {unknown} error */
  #disconnected(error) {
    this.#lostAfter = this.#tally.last;
    const after = ` after event ${this.#lostAfter.toLocaleString("en")}`;
    if (this.#lastCut === "cut") this.#log(`You cut the connection${after}`);
    else if (this.#lastCut === "switch") this.#log(`Changed the transport${after}`);
    else this.#log(`Connection lost${after}${error instanceof GatewayError ? ` (${error.code})` : ""}`, "warning");
  }

  #cut() {
    this.#lastCut = "cut";
    this.mirror?.subscription.cut(CUT_PAUSE_MS);
    this.#announce("Connection cut; it resumes by itself");
  }

  /** @param {TransportName} transport */
  #switch(transport) {
    this.#lastCut = "switch";
    this.mirror?.use(transport);
  }

  async #cancel() {
    const { mirror } = this;
    // While a file is sent there is no job yet, and the upload's own handler stops it.
    if (!mirror) return;
    this.#cancelling = true;
    this.#changedSoon();
    try {
      await this.page.client.cancel(mirror.id);
    } catch (error) {
      if (mirror !== this.mirror) return;
      this.#cancelling = false;
      this.#draw(mirror);
      this.#note(errorPhrase(error), "bad");
    }
  }

  /** A new job with what this one was given. */
  async #again() {
    const { mirror } = this;
    if (!mirror) return;
    by("again").disabled = true;
    try {
      this.page.onjob(await this.page.client.retry(mirror.id));
    } catch (error) {
      if (mirror === this.mirror) this.#note(errorPhrase(error), "bad");
    } finally {
      by("again").disabled = false;
    }
  }

  async #copy() {
    const text = this.#pages.text() || this.mirror?.fold.text.text || by("text").innerText;
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // Pages that are not secure have no clipboard; selecting is what is left.
      getSelection()?.selectAllChildren(by("text"));
    }
    by("copy").textContent = "Copied";
    this.#announce("Text copied");
    setTimeout(() => (by("copy").textContent = "Copy"), 2000);
  }

  /** @param {JobMirror} mirror */
  #ended(mirror) {
    const { fold, error } = mirror;
    if (error && this.page.onrefusal(error, () => this.open(mirror.id))) return;
    const word = STATE_WORDS[fold.state ?? ""] ?? "Ended";
    if (fold.terminal) {
      this.#log(word);
      const lines = this.#pages.lineCount ? `, ${counted(this.#pages.lineCount, "line")}` : "";
      this.#announce(`${word}: ${this.#title}${lines}`);
    }
    if (fold.state === "succeeded") this.#offerDownloads(mirror);
    this.#changedSoon();
    this.page.onend();
  }

  /** @param {JobMirror} mirror */
  #offerDownloads({ id, outputs }) {
    const base = (this.#title.replace(/\.[^.]*$/, "") || id).replaceAll(/[^\p{L}\p{N}._-]+/gu, "-");
    const job = `/v1/jobs/${encodeURIComponent(id)}`;
    const offers = [{ label: "JSON", path: `${job}/result`, name: `${base}.json`, accept: "application/json" }];
    for (const index of outputs.keys()) {
      const extension = index.startsWith("result.") ? index.slice("result.".length) : "";
      const label = { txt: "Text", hocr: "hOCR" }[extension] ?? extension;
      const path = `${job}/outputs/${encodeURIComponent(index)}`;
      if (extension) offers.push({ label, path, name: `${base}.${extension}`, accept: "*/*" });
    }
    by("downloads").replaceChildren(
      ...offers.map(({ label, path, name, accept }) => {
        const button = make("button", { type: "button", className: "button", textContent: label });
        button.setAttribute("aria-label", `Download as ${label}`);
        button.addEventListener("click", () => void this.#download(path, name, accept));
        return button;
      }),
    );
  }

  /** Through fetch, since a link can't carry the key. @param {string} path @param {string} name @param {string} accept */
  async #download(path, name, accept) {
    try {
      const response = await this.page.client.request(path, { accept });
      const url = URL.createObjectURL(await response.blob());
      make("a", { href: url, download: name }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000);
    } catch (error) {
      this.#note(errorPhrase(error), "bad");
    }
  }

  /** @param {string} url @param {HTMLImageElement} image */
  async #showImage(url, image) {
    if (!this.page.hasKey()) {
      image.src = url;
      return;
    }
    // An <img> can't send a key either.
    try {
      const response = await this.page.client.request(url, { signal: this.#stop.signal });
      image.src = URL.createObjectURL(await response.blob());
      this.#objectUrls.push(image.src);
    } catch {
      image.alt += " (the picture could not be loaded)";
    }
  }

  /** @param {boolean} on */
  #follow(on) {
    this.document.following = on;
    by("follow").checked = on;
  }

  /** @param {string} text @param {"" | "bad" | "calm"} [level] */
  #note(text, level = "") {
    const note = by("job-note");
    note.hidden = text === "";
    note.className = `note ${level}`;
    if (note.textContent !== text) note.textContent = text;
  }

  /** @param {string} text @param {string} [level] */
  #log(text, level = "info") {
    const line = make("li");
    line.dataset.level = level;
    line.append(make("time", { textContent: new Date().toLocaleTimeString("en", { hour12: false }) }), ` ${text}`);
    by("log").append(line);
    while (by("log").children.length > MAX_LOG_LINES) by("log").firstElementChild.remove();
  }

  /** @param {string} text */
  #announce(text) {
    this.#announcedAt = Date.now();
    by("announce").textContent = text;
  }

  /** A screen reader is told of pages, but not of each. @param {string} text */
  #announceSometimes(text) {
    if (Date.now() - this.#announcedAt > ANNOUNCE_EVERY_MS) this.#announce(text);
  }
}

/** @param {number | null} value @param {number | null} max @param {string} text */
function reflectBar(value, max, text) {
  const bar = by("bar");
  const wanted = { value: value === null ? null : String(value), max: max === null ? null : String(max), text: text || null };
  for (const [name, given] of Object.entries(wanted)) {
    if (bar.getAttribute(name) === given) continue;
    if (given === null) bar.removeAttribute(name);
    else bar.setAttribute(name, given);
  }
}
