/**
 * Decoders of `tokenizer.json`: how tokens become text again. Each is a stage that takes tokens one by one and gives pieces as soon as
 * nothing later can change them, so that a text that streams is the text decoded at once. A table by `type`.
 */
import type { Fields } from "./fields.ts";
import { patternOf } from "./pattern.ts";
import { characterBytes, utf8 } from "./unicode.ts";

/** Takes tokens and gives pieces. `end` gives what was held back; it is called once, at the end. */
export interface Stage {
  push(token: string): readonly string[];
  end(): readonly string[];
}
/** Makes a stage for one text. */
export type Decoder = () => Stage;

/** A stage that looks at each token alone, and whether it is the first. */
const each =
  (change: (token: string, isFirst: boolean) => string): Decoder =>
  () => {
    let isFirst = true;
    return {
      push(token) {
        const out = change(token, isFirst);
        isFirst = false;
        return [out];
      },
      end: () => [],
    };
  };

/** Stages one after the other. */
export const chain =
  (decoders: readonly Decoder[]): Decoder =>
  () => {
    const stages = decoders.map((make) => make());
    const through = (pieces: readonly string[], from: number): readonly string[] =>
      stages.slice(from).reduce((tokens, stage) => tokens.flatMap((token) => stage.push(token)), pieces);
    return {
      push: (token) => through([token], 0),
      end: () => stages.flatMap((stage, i) => through(stage.end(), i + 1)),
    };
  };

/** Keeps all tokens until the end, for stages that need the whole text. */
const whole =
  (change: (text: string) => string): Decoder =>
  () => {
    const tokens: string[] = [];
    return {
      push(token) {
        tokens.push(token);
        return [];
      },
      end: () => (tokens.length > 0 ? [change(tokens.join(""))] : []),
    };
  };

/** The bytes that a token spells; its own where it is no spelling, as of special tokens. */
function spelt(token: string): Uint8Array {
  const bytes = new Uint8Array(token.length);
  for (let i = 0; i < token.length; i++) {
    const byte = characterBytes[token.charCodeAt(i)] ?? -1;
    if (byte < 0) return utf8.encode(token);
    bytes[i] = byte;
  }
  return bytes;
}

function byteLevel(): Decoder {
  const known = new Map<string, Uint8Array>(); // of tokens of one vocabulary
  const bytesOf = (token: string): Uint8Array => {
    let bytes = known.get(token);
    if (bytes === undefined) {
      bytes = spelt(token);
      known.set(token, bytes);
    }
    return bytes;
  };
  return () => {
    const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    return {
      push: (token) => [decoder.decode(bytesOf(token), { stream: true })],
      end: () => [decoder.decode()],
    };
  };
}

/** Tokens <0x00> … in a row are UTF-8; where they are not, each is U+FFFD. What follows decides, so the row is held back. */
const byteFallback: Decoder = () => {
  let bytes: number[] = [];
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  const flush = (): string[] => {
    const row = bytes;
    bytes = [];
    if (row.length === 0) return [];
    try {
      return [decoder.decode(Uint8Array.from(row))];
    } catch {
      return row.map(() => "\ufffd");
    }
  };
  return {
    push(token) {
      const byte = /^<0x([0-9a-fA-F]{2})>$/.exec(token);
      if (!byte) return [...flush(), token];
      bytes.push(Number.parseInt(byte[1], 16));
      return [];
    },
    end: flush,
  };
};

/** Up to `start` times `content` at a token's beginning, up to `stop` times at its end. */
function strip(fields: Fields): { content: string; start: number; stop: number; decoder: Decoder } {
  const content = fields.text("content");
  const [start, stop] = [fields.whole("start", 0), fields.whole("stop", 0)];
  const decoder = each((token) => {
    const characters = [...token];
    let [from, to] = [0, characters.length];
    while (from < Math.min(start, characters.length) && characters[from] === content) from++;
    while (to > 0 && characters.length - to < stop && characters[to - 1] === content) to--;
    return characters.slice(from, Math.max(from, to)).join("");
  });
  return { content, start, stop, decoder };
}

/** Strip of the whole text that goes by in pieces: a beginning is waited for, and what may be the end is held back. */
const stripWhole =
  ({ content, start, stop }: { content: string; start: number; stop: number }): Decoder =>
  () => {
    let taken = 0;
    let isBeginning = true;
    let held = 0;
    return {
      push(piece) {
        let out = "";
        for (const character of piece) {
          if (isBeginning && character === content && taken < start) taken++;
          else {
            isBeginning = false;
            if (character === content && stop > 0) held++;
            else {
              out += content.repeat(held) + character;
              held = 0;
            }
          }
        }
        if (held > stop) {
          out += content.repeat(held - stop);
          held = stop;
        }
        return out === "" ? [] : [out];
      },
      end: () => [],
    };
  };

/** The stages of a list. What comes after Fuse has the whole text before it; Strip can do that on the way. */
function sequence(parts: readonly Fields[]): Decoder {
  const out: Decoder[] = [];
  let isFused = false;
  for (const fields of parts) {
    const type = fields.text("type");
    if (isFused && type === "Strip") out.push(stripWhole(strip(fields)));
    else if (isFused && type !== "Fuse")
      out.push(
        whole((text) => text),
        decoderOf(fields),
      );
    else out.push(decoderOf(fields));
    isFused ||= type === "Fuse";
  }
  return chain(out);
}

/** What transformers' WordPiece writes together again. */
const cleanUp = (text: string): string =>
  [
    [" .", "."],
    [" ?", "?"],
    [" !", "!"],
    [" ,", ","],
    [" ' ", "'"],
    [" n't", "n't"],
    [" 'm", "'m"],
    [" do not", " don't"],
    [" 's", "'s"],
    [" 've", "'ve"],
    [" 're", "'re"],
  ].reduce((out, [from, to]) => out.replaceAll(from, to), text);

function wordPiece(fields: Fields): Decoder {
  const [prefix, cleans] = [fields.text("prefix", "##"), fields.flag("cleanup", true)];
  return each((token, isFirst) => {
    const out = isFirst ? token : prefix !== "" && token.startsWith(prefix) ? token.slice(prefix.length) : ` ${token}`;
    return cleans ? cleanUp(out) : out;
  });
}

function metaspace(fields: Fields): Decoder {
  const replacement = fields.text("replacement", "▁");
  const drops =
    fields.flag("add_prefix_space", true) &&
    fields.choice("prepend_scheme", ["always", "first", "never"], "always") !== "never";
  return each((token, isFirst) => token.replaceAll(replacement, isFirst && drops ? "" : " "));
}

/** The suffix of a word's last token is a space, but at the end of the text. */
const bpeSuffix = (fields: Fields): Decoder => {
  const suffix = fields.text("suffix", "</w>");
  return () => {
    let held: string | null = null;
    return {
      push(token) {
        const out = held === null ? [] : [held.replaceAll(suffix, " ")];
        held = token;
        return out;
      },
      end: () => (held === null ? [] : [held.replaceAll(suffix, "")]),
    };
  };
};

function ctc(fields: Fields): Decoder {
  const [padding, delimiter] = [fields.text("pad_token", "<pad>"), fields.text("word_delimiter_token", "|")];
  const cleans = fields.flag("cleanup", true);
  return () => {
    let last: string | null = null;
    return {
      push(token) {
        if (token === last) return [];
        last = token;
        const out = token.replaceAll(padding, "");
        return [cleans ? cleanUp(out).replaceAll(delimiter, " ") : out].filter((text) => text !== "");
      },
      end: () => [],
    };
  };
}

const kinds: Readonly<Record<string, (fields: Fields) => Decoder>> = {
  Sequence: (fields) => sequence(fields.parts("decoders")),
  ByteLevel: byteLevel,
  ByteFallback: () => byteFallback,
  Fuse: () => each((token) => token),
  Strip: (fields) => strip(fields).decoder,
  Replace: (fields) => {
    const found = patternOf(fields);
    const content = fields.text("content");
    return each((token) => (found === null ? token : token.replace(found, () => content)));
  },
  WordPiece: wordPiece,
  Metaspace: metaspace,
  BPEDecoder: bpeSuffix,
  CTC: ctc,
};

/** The decoder of a file that names none: tokens with spaces between them. */
export const spaced: Decoder = /* @__PURE__ */ each((token, isFirst) => (isFirst ? token : ` ${token}`));

/** The stages of a decoder. Throws TokenizerError for one that is not known or damaged. */
export const decoderOf = (fields: Fields): Decoder => fields.kind(kinds)(fields);
