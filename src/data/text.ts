/**
 * A text corpus from files and folders, in an order that is the same on every machine, checked to be text (UTF-8), and
 * split into a training and a validation part. No tokens yet: `tokenizer.ts` makes them.
 */
import { elsewhere } from "./elsewhere.ts";
import { TextError } from "./errors.ts";
import { entryAt, fileError, listFolder } from "./files.ts";
import { extname, join } from "./path.ts";
import { pathOf, type ReadOptions, readBytes, type Source, sourceName, together } from "./source.ts";

export { TextError } from "./errors.ts";

/** In folders, files with these endings are taken; a file that is named itself is taken whatever its ending. */
export const textExtensions: ReadonlySet<string> = new Set([
  ".txt",
  ".md",
  ".markdown",
  ".rst",
  ".tex",
  ".log",
  ".csv",
  ".tsv",
  ".json",
  ".jsonl",
  ".xml",
  ".html",
  ".css",
  ".yaml",
  ".yml",
  ".toml",
  ".ini",
  ".ts",
  ".mts",
  ".cts",
  ".tsx",
  ".js",
  ".mjs",
  ".cjs",
  ".jsx",
  ".py",
  ".c",
  ".h",
  ".cc",
  ".cpp",
  ".hpp",
  ".rs",
  ".go",
  ".java",
  ".kt",
  ".rb",
  ".sh",
  ".sql",
]);

export interface TextCorpusOptions extends ReadOptions {
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
  const packed = bytes[0] === 0x1f && bytes[1] === 0x8b ? "gzip" : bytes[0] === 0x50 && bytes[2] === 3 ? "zip" : null;
  if (packed !== null) throw new TextError(`${file}: not a text file: it is packed (${packed}); unpack it first`);
  const nul = bytes.indexOf(0);
  if (nul >= 0) throw new TextError(`${file}: not a text file: a zero byte at offset ${nul}; name text files only`);
  try {
    return new TextDecoder("utf-8", { fatal: true }).decode(bytes);
  } catch {
    const at = invalidUtf8Offset(bytes);
    throw new TextError(
      `${file}: not UTF-8: byte 0x${bytes[at].toString(16).padStart(2, "0")} at offset ${at}; ` +
        "if it is text in another encoding, convert it first (for instance iconv -f LATIN1 -t UTF-8)",
    );
  }
}

interface TextFile {
  readonly path: string;
  readonly source: Source;
  /** Whether it was named itself, not found in a folder. */
  readonly named: boolean;
}

/** The text files that `sources` name: files as given, folders recursively by name; each real file once. */
async function collect(sources: readonly Source[], extensions: ReadonlySet<string>): Promise<TextFile[]> {
  const seen = new Set<string>();
  const out: TextFile[] = [];
  const visit = async (path: string, named: boolean): Promise<void> => {
    let entry: Awaited<ReturnType<typeof entryAt>>;
    try {
      entry = await entryAt(path);
    } catch (error) {
      if (!named) return; // a dangling link inside a folder
      throw fileError("read", path, error);
    }
    const { id, kind } = entry;
    if (seen.has(id)) return; // named twice, or a link back up
    if (kind === "folder") {
      seen.add(id);
      for (const name of await listFolder(path))
        if (!name.startsWith(".") && name !== "node_modules") await visit(join(path, name), false);
    } else if (named || (kind === "file" && extensions.has(extname(path).toLowerCase()))) {
      seen.add(id);
      out.push({ path, source: path, named });
    }
  };
  for (const source of sources) {
    const path = pathOf(source);
    if (path === null) {
      out.push({ path: sourceName(source), source, named: true });
      continue;
    }
    const before = out.length;
    const known = seen.size;
    await visit(path, true);
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
  const at = splitAt(text, share);
  return [text.slice(0, at), text.slice(at)];
}

function splitAt(text: string, share: number): number {
  if (!(share >= 0 && share < 1)) throw new TextError(`the validation share must be in [0, 1), got ${share}`);
  return characterIndex(text, Math.floor(countCharacters(text) * (1 - share)));
}

/** Texts as one, and where each came from. */
interface Joined {
  readonly text: string;
  readonly files: TextCorpus["files"];
}

/** Reads text files, and folders of them, as one text. */
async function readJoined(sources: readonly Source[], options: TextCorpusOptions): Promise<Joined> {
  const parts: string[] = [];
  const files: { path: string; bytes: number }[] = [];
  let total = 0;
  let last = "";
  const watch = together(options);
  for (const { path, source, named } of await collect(sources, options.extensions ?? textExtensions)) {
    const bytes = await readBytes(source, watch());
    const text = decodeText(bytes, path);
    if (text === "") {
      if (named) throw new TextError(`${path}: the file is empty; name a file with text`);
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
  return { text: parts.join(""), files };
}

/** A corpus as one text, and where its validation part begins: what the worker sends, the text once. */
export async function readSplitText(
  sources: Source | readonly Source[],
  options: TextCorpusOptions,
): Promise<Joined & { readonly at: number }> {
  const list = Array.isArray(sources) ? (sources as readonly Source[]) : [sources as Source];
  if (list.length === 0) throw new TextError("no text: name at least one file or folder");
  const { text, files } = await readJoined(list, options);
  const names = list.map(sourceName).join(", ");
  if (files.length === 0) throw new TextError(`${names}: all text files there are empty`);
  const share = options.validation ?? 0.1;
  const at = splitAt(text, share);
  if (at === 0 || (share > 0 && at === text.length))
    throw new TextError(
      `${names}: ${countCharacters(text)} characters are too few to split into a training and a validation part`,
    );
  return { text, at, files };
}

/**
 * Reads text files, and folders of them (hidden entries and node_modules aside), as one text; a newline is put between
 * two files where the first does not end in one. On a page in a worker. Throws FileError for a missing path, TextError for a
 * file that is empty (if named itself), binary or not UTF-8, for a folder without text, and for text too short to split.
 */
export async function readTextCorpus(
  sources: Source | readonly Source[],
  options: TextCorpusOptions = {},
): Promise<TextCorpus> {
  const { validation, extensions } = options;
  const { text, at, files } = elsewhere
    ? await elsewhere<Awaited<ReturnType<typeof readSplitText>>>(
        "readSplitText",
        [sources, { validation, extensions }],
        options,
      )
    : await readSplitText(sources, options);
  return { text, train: text.slice(0, at), validation: text.slice(at), files };
}
