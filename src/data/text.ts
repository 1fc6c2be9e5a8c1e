/**
 * A text corpus from files and folders, in an order that is the same on every machine, checked to be text (UTF-8), and
 * split into a training and a validation part. No tokens yet: `tokenizer.ts` makes them.
 */
import { isUtf8 } from "node:buffer";
import { realpathSync, statSync } from "node:fs";
import { extname, join } from "node:path";
import { NablaError } from "../core/errors.ts";
import { fileError, listFolder, readBytes } from "./files.ts";

/** Text that can't be used: empty, binary, not UTF-8. Missing paths are FileErrors. */
export class TextError extends NablaError {
  override name = "TextError";
}

/** In folders, files with these endings are taken; a file that is named itself is taken whatever its ending. */
export const textExtensions: ReadonlySet<string> = new Set(
  (
    ".txt .md .markdown .rst .tex .log .csv .tsv .json .jsonl .xml .html .css .yaml .yml .toml .ini " +
    ".ts .mts .cts .tsx .js .mjs .cjs .jsx .py .c .h .cc .cpp .hpp .rs .go .java .kt .rb .sh .sql"
  ).split(" "),
);

export interface TextCorpusOptions {
  /** Share of the characters, at the end, that becomes the validation part; 0.1 by default, 0 for none. */
  readonly validation?: number;
  /** Endings to take in folders, with their dots; `textExtensions` by default. */
  readonly extensions?: ReadonlySet<string>;
}

export interface TextCorpus {
  readonly text: string;
  readonly train: string;
  readonly validation: string;
  /** In the order of the text. */
  readonly files: readonly { readonly path: string; readonly bytes: number }[];
}

/** Offset of the first byte that is not part of valid UTF-8 (RFC 3629), or -1. */
export function invalidUtf8Offset(bytes: Uint8Array): number {
  for (let i = 0; i < bytes.length; ) {
    const b = bytes[i];
    if (b < 0x80) {
      i++;
      continue;
    }
    const length = b >= 0xc2 && b < 0xe0 ? 2 : b >= 0xe0 && b < 0xf0 ? 3 : b >= 0xf0 && b < 0xf5 ? 4 : 0;
    if (length === 0) return i;
    // The second byte's range excludes overlong forms, surrogates and what is beyond U+10FFFF.
    const low = b === 0xe0 ? 0xa0 : b === 0xf0 ? 0x90 : 0x80;
    const high = b === 0xed ? 0x9f : b === 0xf4 ? 0x8f : 0xbf;
    for (let k = 1; k < length; k++) {
      const c = bytes[i + k];
      if (c === undefined || c < (k === 1 ? low : 0x80) || c > (k === 1 ? high : 0xbf)) return i;
    }
    i += length;
  }
  return -1;
}

/** Bytes as text; a byte order mark is dropped. Throws TextError, naming the offset, for binary data and other encodings. */
export function decodeText(bytes: Uint8Array, file: string): string {
  if ((bytes[0] === 0xff && bytes[1] === 0xfe) || (bytes[0] === 0xfe && bytes[1] === 0xff))
    throw new TextError(`${file}: the text is UTF-16; convert it first (iconv -f UTF-16 -t UTF-8)`);
  const nul = bytes.indexOf(0);
  if (nul >= 0) throw new TextError(`${file}: not a text file: a zero byte at offset ${nul}; name text files only`);
  if (!isUtf8(bytes)) {
    const at = invalidUtf8Offset(bytes);
    throw new TextError(
      `${file}: not UTF-8: byte 0x${bytes[at].toString(16).padStart(2, "0")} at offset ${at}; ` +
        "if it is text in another encoding, convert it first (for instance iconv -f LATIN1 -t UTF-8)",
    );
  }
  return new TextDecoder().decode(bytes);
}

/** The text files that `paths` name: files as given, folders recursively by name; each real file once. */
function collect(paths: readonly string[], extensions: ReadonlySet<string>): string[] {
  const seen = new Set<string>();
  const out: string[] = [];
  const visit = (path: string, named: boolean): void => {
    let real: string;
    let info: ReturnType<typeof statSync>;
    try {
      real = realpathSync(path);
      info = statSync(real);
    } catch (error) {
      if (!named) return; // a dangling link inside a folder
      throw fileError("read", path, error);
    }
    if (info!.isDirectory()) {
      if (seen.has(real)) return; // a link back up
      seen.add(real);
      for (const name of listFolder(path))
        if (!name.startsWith(".") && name !== "node_modules") visit(join(path, name), false);
    } else if (named || (info!.isFile() && extensions.has(extname(path).toLowerCase()))) {
      if (seen.has(real)) return;
      seen.add(real);
      out.push(path);
    }
  };
  for (const path of paths) {
    const before = out.length;
    const known = seen.size;
    visit(path, true);
    if (out.length === before && seen.size > known)
      throw new TextError(
        `${path}: no text files in this folder; files with one of these endings are taken: ${[...extensions].join(" ")}`,
      );
  }
  return out;
}

/** Index (in UTF-16 units) of the `count`-th character (code point). */
function characterIndex(text: string, count: number): number {
  let i = 0;
  for (let n = 0; n < count; n++) i += (text.charCodeAt(i) & 0xfc00) === 0xd800 ? 2 : 1;
  return i;
}

function countCharacters(text: string): number {
  let pairs = 0;
  for (let i = 0; i < text.length; i++) if ((text.charCodeAt(i) & 0xfc00) === 0xd800) pairs++;
  return text.length - pairs;
}

/** The first ⌊(1 − share)·n⌋ of a text's n characters, and the rest (nanoGPT's rule for share 0.1). */
export function splitText(text: string, share: number): [train: string, validation: string] {
  if (!(share >= 0 && share < 1)) throw new TextError(`the validation share must be in [0, 1), got ${share}`);
  const at = characterIndex(text, Math.floor(countCharacters(text) * (1 - share)));
  return [text.slice(0, at), text.slice(at)];
}

/**
 * Reads text files, and folders of them (hidden entries and node_modules aside), as one text; a newline is put between
 * two files where the first does not end in one. Throws FileError for a missing path, TextError for a file that is
 * empty (if named itself), binary or not UTF-8, for a folder without text, and for text too short to split.
 */
export async function readTextCorpus(paths: readonly string[], options: TextCorpusOptions = {}): Promise<TextCorpus> {
  const { validation: share = 0.1, extensions = textExtensions } = options;
  if (paths.length === 0) throw new TextError("no text: name at least one file or folder");
  const named = new Set(paths);
  const parts: string[] = [];
  const files: { path: string; bytes: number }[] = [];
  let total = 0;
  let last = "";
  for (const path of collect(paths, extensions)) {
    const bytes = await readBytes(path);
    const text = decodeText(bytes, path);
    if (text === "") {
      if (named.has(path)) throw new TextError(`${path}: the file is empty; name a file with text`);
      continue;
    }
    if (last !== "" && last !== "\n") parts.push("\n");
    parts.push(text);
    last = text[text.length - 1];
    files.push({ path, bytes: bytes.length });
    total += text.length + 1;
    if (total > 2 ** 29 - 100)
      throw new TextError(
        `${path}: more than 500 million characters in all; that is more than one string can hold, name fewer files`,
      );
  }
  if (files.length === 0) throw new TextError(`${paths.join(", ")}: all text files there are empty`);
  const text = parts.join("");
  const [train, validation] = splitText(text, share);
  if (train === "" || (share > 0 && validation === ""))
    throw new TextError(
      `${paths.join(", ")}: ${countCharacters(text)} characters are too few to split into a training and a validation part`,
    );
  return { text, train, validation, files };
}
