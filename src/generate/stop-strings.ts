/**
 * Stop strings in a text that comes in pieces: a stop string may begin in one piece and end in another, so what may still become one is
 * held back.
 */
import { NablaError } from "../core/errors.ts";

export class StopStrings {
  readonly #strings: readonly string[];
  #held = "";
  #hasStopped = false;

  constructor(strings: string | readonly string[] = []) {
    this.#strings = typeof strings === "string" ? [strings] : strings;
    if (this.#strings.includes("")) throw new NablaError("generate: an empty stop string would end every text at once");
  }

  /** Whether a stop string has come. */
  get hasStopped(): boolean {
    return this.#hasStopped;
  }

  /** What of the text is certain to stand before any stop string. Of several the one that is whole first ends the text. */
  push(piece: string): string {
    if (this.#hasStopped) return "";
    const text = this.#held + piece;
    const found = this.#strings
      .map((stop) => ({ start: text.indexOf(stop), length: stop.length }))
      .filter(({ start }) => start >= 0)
      .sort((a, b) => a.start + a.length - (b.start + b.length) || a.start - b.start);
    if (found.length > 0) {
      this.#hasStopped = true;
      this.#held = "";
      return text.slice(0, found[0].start);
    }
    const held = Math.max(0, ...this.#strings.map((stop) => overlap(text, stop)));
    this.#held = text.slice(text.length - held);
    return text.slice(0, text.length - held);
  }

  /** What was held back, once it is certain that nothing follows. */
  end(): string {
    const rest = this.#held;
    this.#held = "";
    return rest;
  }
}

/** The length of the longest end of `text` with which `stop` begins. */
function overlap(text: string, stop: string): number {
  for (let length = Math.min(text.length, stop.length - 1); length > 0; length--)
    if (text.endsWith(stop.slice(0, length))) return length;
  return 0;
}
