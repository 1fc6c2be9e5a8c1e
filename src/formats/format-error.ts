/** The one error of the formats that are read here by hand: GGUF, PyTorch's files, NumPy's files, and the zip around them. */
import { NablaError } from "../core/errors.ts";

/**
 * A file that is not valid in its format, or holds what is not read here. The message names the file, the byte and what was
 * found there; `offset` is that byte, from the start of the file.
 */
export class FormatError extends NablaError {
  override name = "FormatError";
  readonly file: string;
  readonly offset: number;
  constructor(file: string, offset: number, what: string) {
    super(`${file}: byte ${offset}: ${what}`);
    this.file = file;
    this.offset = offset;
  }
}

/** A name out of a file, for messages: quoted, and cut where it is long. */
export const quote = (name: string): string => JSON.stringify(name.length > 100 ? `${name.slice(0, 100)}…` : name);
