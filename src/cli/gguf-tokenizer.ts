/** The tokenizer inside of a GGUF file, as the files that a model's folder has: tokenizer.json and tokenizer_config.json. */
import { TokenizerError } from "../data/errors.ts";
import { type GgufValue, readGguf } from "../formats/index.ts";
import type { TokenizerFiles } from "./model-tokenizer.ts";

type Metadata = ReadonlyMap<string, GgufValue>;

/** Throws TokenizerError where the file holds none, or one of a kind that is not known. */
export async function tokenizerFilesOfGguf(path: string): Promise<TokenizerFiles> {
  const { metadata } = await readGguf(path);
  const kind = metadata.get("tokenizer.ggml.model")?.value;
  if (kind !== "llama")
    throw new TokenizerError(
      `${path}: ${kind === undefined ? "there is no tokenizer in this file" : `a tokenizer of kind "${String(kind)}"`}; SentencePiece ("llama") can be read`,
    );
  const { tokens, scores, types } = pieces(metadata, path);
  const id = (name: string): number | undefined => {
    const value = metadata.get(`tokenizer.ggml.${name}_token_id`)?.value;
    return typeof value === "number" ? value : undefined;
  };
  const [bos, eos, unknown] = [id("bos") ?? 1, id("eos") ?? 2, id("unknown") ?? 0];
  const special = tokens.flatMap((content, i) => (types[i] === 3 || types[i] === 2 ? [{ id: i, content }] : []));
  const beginsWithBos = metadata.get("tokenizer.ggml.add_bos_token")?.value !== false;
  const template = metadata.get("tokenizer.chat_template")?.value;
  const tokenizer = {
    version: "1.0",
    truncation: null,
    padding: null,
    added_tokens: special.map((each) => ({
      ...each,
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: {
      type: "Sequence",
      normalizers: [
        { type: "Prepend", prepend: "▁" },
        { type: "Replace", pattern: { String: " " }, content: "▁" },
      ],
    },
    pre_tokenizer: null,
    post_processor: beginsWithBos ? beginning(tokens[bos], bos) : null,
    decoder: {
      type: "Sequence",
      decoders: [
        { type: "Replace", pattern: { String: "▁" }, content: " " },
        { type: "ByteFallback" },
        { type: "Fuse" },
        { type: "Strip", content: " ", start: 1, stop: 0 },
      ],
    },
    model: {
      type: "BPE",
      dropout: null,
      unk_token: tokens[unknown],
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: true,
      byte_fallback: true,
      ignore_merges: false,
      vocab: Object.fromEntries(tokens.map((token, i) => [token, i])),
      merges: mergesOf(tokens, scores),
    },
  };
  return {
    tokenizer,
    config: {
      tokenizer_class: "LlamaTokenizer",
      bos_token: tokens[bos],
      eos_token: tokens[eos],
      unk_token: tokens[unknown],
      ...(typeof template === "string" ? { chat_template: template } : {}),
    },
    eosTokenId: eos,
    source: path,
  };
}

function pieces(metadata: Metadata, path: string) {
  const list = (name: string): ArrayLike<unknown> => {
    const found = metadata.get(`tokenizer.ggml.${name}`);
    if (found?.type !== "array") throw new TokenizerError(`${path}: "tokenizer.ggml.${name}" is missing`);
    return found.value as ArrayLike<unknown>;
  };
  return {
    tokens: Array.from(list("tokens")) as string[],
    scores: Array.from(list("scores")) as number[],
    types: Array.from(list("token_type")) as number[],
  };
}

/** SentencePiece joins the pair whose piece has the best score; a BPE whose merges are in the order of the scores does the same. */
function mergesOf(tokens: readonly string[], scores: readonly number[]): [string, string][] {
  const known = new Map(tokens.map((token, i) => [token, i]));
  const merges = tokens.flatMap((token, i) => {
    const characters = [...token];
    return characters.slice(1).flatMap((_, at) => {
      const [left, right] = [characters.slice(0, at + 1).join(""), characters.slice(at + 1).join("")];
      return known.has(left) && known.has(right) ? [{ pair: [left, right] as [string, string], score: scores[i] }] : [];
    });
  });
  return merges.sort((a, b) => b.score - a.score).map(({ pair }) => pair);
}

const beginning = (token: string, id: number) => ({
  type: "TemplateProcessing",
  single: [{ SpecialToken: { id: token, type_id: 0 } }, { Sequence: { id: "A", type_id: 0 } }],
  pair: [
    { SpecialToken: { id: token, type_id: 0 } },
    { Sequence: { id: "A", type_id: 0 } },
    { Sequence: { id: "B", type_id: 0 } },
  ],
  special_tokens: { [token]: { id: token, ids: [id], tokens: [token] } },
});
