/**
 * The table of replacements inside a SentencePiece model ("Precompiled"): a trie in a double array (Darts' layout) that leads from
 * the bytes of a character to the place of its replacement in one long text.
 */
import { TokenizerError } from "../errors.ts";
import { grown } from "./limits.ts";
import { utf8 } from "./unicode.ts";

const offsetOf = (unit: number): number => (unit >>> 10) << ((unit & 0x200) >>> 6);
const labelOf = (unit: number): number => unit & 0x800000ff;

/** Clusters this long or longer are never looked up as a whole. */
const longestCluster = 6;

export class CharsMap {
  readonly #units: Uint32Array;
  readonly #texts: Uint8Array;
  readonly #decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  readonly #clusters = new Intl.Segmenter("en", { granularity: "grapheme" });

  /** `blob`: the length of the trie in bytes, the trie, and the replacements, each ended by a zero. Throws TokenizerError. */
  constructor(blob: Uint8Array, place: string) {
    const length = blob.length < 4 ? Number.NaN : new DataView(blob.buffer, blob.byteOffset).getUint32(0, true);
    if (!(length % 4 === 0 && length > 0 && 4 + length <= blob.length))
      throw new TokenizerError(`${place}: the map of characters is damaged; ${blob.length} bytes hold no trie`);
    const units = new DataView(blob.buffer, blob.byteOffset + 4, length);
    this.#units = new Uint32Array(length / 4);
    for (let i = 0; i < this.#units.length; i++) this.#units[i] = units.getUint32(4 * i, true);
    this.#texts = blob.subarray(4 + length);
  }

  /** Throws TokenizerError where the result would be longer than `most`. */
  normalize(text: string, most: number): string {
    let out = "";
    for (const { segment } of this.#clusters.segment(text)) {
      const bytes = utf8.encode(segment);
      const whole = bytes.length < longestCluster ? this.#replacement(bytes) : null;
      if (whole !== null) out += whole;
      else for (const character of segment) out += this.#replacement(utf8.encode(character)) ?? character;
      if (out.length > most) throw grown(most);
    }
    return out;
  }

  /** What stands for the shortest beginning of `bytes` that is in the trie; null where none is. */
  #replacement(bytes: Uint8Array): string | null {
    const units = this.#units;
    let at = offsetOf(units[0]);
    for (const byte of bytes) {
      if (byte === 0) return null;
      at ^= byte;
      const unit = units[at] ?? 0;
      if (at >= units.length || labelOf(unit) !== byte) return null;
      at ^= offsetOf(unit);
      if (((unit >>> 8) & 1) === 0) continue;
      const start = (units[at] ?? 0) & 0x7fffffff;
      const end = this.#texts.indexOf(0, start);
      return this.#decoder.decode(this.#texts.subarray(start, end < 0 ? undefined : end));
    }
    return null;
  }
}
