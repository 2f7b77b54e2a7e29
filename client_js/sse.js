/**
 * The decoder of `text/event-stream`, to the WHATWG text (HTML, section "Server-sent events"). No I/O: bytes or text go
 * in, messages come out. They may be cut anywhere: between CR and LF, and bytes inside a character.
 */

/**
 * One message of the stream.
 * @typedef {object} Message
 * @property {string} type `message`, or what an `event:` line said
 * @property {string} data
 * @property {string} lastEventId the last `id:` up to and with this message
 */

// One message's text. The server keeps an event under 256 KiB and a snapshot under a few MiB; anything near this is
// not our protocol, and would otherwise grow without bound.
export const MAX_MESSAGE_CHARS = 16 * 1024 * 1024;

const LINE_END = /\r\n|\n|\r/g;

/** Takes a stream piece by piece, and gives the messages that are complete. */
export class EventStreamDecoder {
  /**
   * What to come back with. It moves at a blank line only, with or without data, so a message that was cut in the
   * middle does not count.
   */
  lastEventId = "";
  /** The server's advice for the pause before a reconnect, in ms; null until it gives one. @type {number | null} */
  retryMs = null;

  #idBuffer = "";
  #type = "";
  #data = "";
  #partial = "";
  #started = false;
  #afterCarriageReturn = false;
  // The one byte order mark that may lead is taken off below; a second one is content.
  #utf8 = new TextDecoder("utf-8", { ignoreBOM: true });

  /** @param {string} [lastEventId] what the client came with */
  constructor(lastEventId = "") {
    this.lastEventId = lastEventId;
    this.#idBuffer = lastEventId;
  }

  /**
   * Take the next piece of the stream; all pieces are bytes, or all are text.
   * @param {string | Uint8Array} piece
   * @returns {Message[]} the messages that it completes
   */
  feed(piece) {
    const text = typeof piece === "string" ? piece : this.#utf8.decode(piece, { stream: true });
    if (text === "") return [];
    let start = 0;
    if (!this.#started) {
      this.#started = true;
      // [spec] "The UTF-8 decode algorithm strips one leading UTF-8 Byte Order Mark (BOM), if any."
      if (text.charCodeAt(0) === 0xfeff) start = 1;
    }
    if (this.#afterCarriageReturn && text[0] === "\n") start = 1;
    /** @type {Message[]} */
    const messages = [];
    LINE_END.lastIndex = start;
    for (let end = LINE_END.exec(text); end !== null; end = LINE_END.exec(text)) {
      this.#line(this.#partial + text.slice(start, end.index), messages);
      this.#partial = "";
      start = LINE_END.lastIndex;
    }
    this.#afterCarriageReturn = text.endsWith("\r");
    // Only what is new was searched, so a long line that comes in many pieces does not cost its square.
    this.#partial += text.slice(start);
    if (this.#partial.length + this.#data.length > MAX_MESSAGE_CHARS) {
      throw new RangeError(`a message of more than ${MAX_MESSAGE_CHARS} characters: this is not an Outlast stream`);
    }
    return messages;
  }

  /** @param {string} line @param {Message[]} messages */
  #line(line, messages) {
    if (line === "") return this.#dispatch(messages);
    const colon = line.indexOf(":");
    // [spec] "If the line starts with a U+003A COLON character (:): Ignore the line."
    if (colon === 0) return;
    const name = colon < 0 ? line : line.slice(0, colon);
    // [spec] "If value starts with a U+0020 SPACE character, remove it from value."
    const value = colon < 0 ? "" : line.slice(line[colon + 1] === " " ? colon + 2 : colon + 1);
    if (name === "data") this.#data += value + "\n";
    else if (name === "event") this.#type = value;
    else if (name === "id") {
      // [spec] "If the field value does not contain U+0000 NULL, then set the last event ID buffer to the field value."
      if (!value.includes("\0")) this.#idBuffer = value;
    } else if (name === "retry") {
      // [spec] "If the field value consists of only ASCII digits" ... "Otherwise, ignore the field."
      if (/^[0-9]+$/.test(value)) this.retryMs = Number(value);
    }
  }

  /** @param {Message[]} messages */
  #dispatch(messages) {
    // [spec] "Set the last event ID string of the event source to the value of the last event ID buffer. The buffer
    // does not get reset" ... "If the data buffer is an empty string, set the data buffer and the event type buffer to
    // the empty string and return."
    this.lastEventId = this.#idBuffer;
    if (this.#data !== "") {
      messages.push({ type: this.#type || "message", data: this.#data.slice(0, -1), lastEventId: this.lastEventId });
    }
    this.#data = "";
    this.#type = "";
  }
}
