/**
 * A tokenizer as GGUF's metadata: the way back from `gguf-tokenizer.ts`. SentencePiece's kind of BPE gets scores in the order of its merges,
 * byte-level BPE its merges and the name of how it cuts a text.
 */
import { TokenizerError } from "../data/errors.ts";
import type { GgufValue } from "../formats/index.ts";

/** What lies beside a model's weights of its tokenizer. */
export interface TokenizerFiles {
  /** tokenizer.json. */
  readonly tokenizer: object;
  /** tokenizer_config.json. */
  readonly config: Readonly<Record<string, unknown>>;
  /** Of generation_config.json or config.json: a number, or several. */
  readonly eosTokenId?: unknown;
  /** What errors call it. */
  readonly source: string;
}

/** What of a tokenizer.json is looked at. */
interface BpeFile {
  readonly model?: {
    readonly type?: string;
    readonly byte_fallback?: boolean;
    readonly unk_token?: string | null;
    readonly vocab?: Readonly<Record<string, number>>;
    readonly merges?: readonly (string | readonly [string, string])[];
  };
  readonly added_tokens?: readonly { readonly id: number; readonly content: string; readonly special: boolean }[];
  readonly pre_tokenizer?: unknown;
}

/** llama.cpp's kinds of tokens. */
const tokenTypes = { normal: 1, unknown: 2, control: 3, user: 4, unused: 5, byte: 6 } as const;

/** llama.cpp's names of how a byte-level BPE cuts a text, by what stands in the pre-tokenizer's pattern. */
const cuttings: readonly (readonly [pattern: RegExp, name: string])[] = [
  [/\\p\{N\}\{1,3\}.*\\s\*\[\\r\\n\]/, "llama-bpe"],
  [/\\p\{L\}\+\|\\p\{N\}\|.*\\s\*\[\\r\\n\]/, "qwen2"],
];

/** The metadata of a GGUF file that hold a tokenizer. Throws TokenizerError for a kind that GGUF does not have. */
export function ggufTokenizerMetadata({
  tokenizer,
  config,
  eosTokenId,
  source,
}: TokenizerFiles): Map<string, GgufValue> {
  const file = tokenizer as BpeFile;
  const { model, added_tokens: added = [] } = file;
  if (model?.type !== "BPE" || model.vocab === undefined)
    throw new TokenizerError(
      `${source}: a tokenizer of kind ${String(model?.type)} can't be written into a GGUF file; BPE can`,
    );
  const byId = new Map<number, string>(Object.entries(model.vocab).map(([token, id]) => [id, token]));
  for (const { id, content } of added) byId.set(id, content);
  const count = 1 + Math.max(...byId.keys());
  const tokens = Array.from({ length: count }, (_, id) => byId.get(id) ?? `[PAD${id}]`);
  const special = new Map(added.map(({ id, special: isSpecial }) => [id, isSpecial]));
  const merges = (model.merges ?? []).map(
    (pair) => (typeof pair === "string" ? pair.split(" ") : [...pair]) as [string, string],
  );
  const pieces = model.byte_fallback === true;
  const types = tokens.map((token, id) => {
    if (token === model.unk_token) return tokenTypes.unknown;
    if (!byId.has(id)) return tokenTypes.unused;
    if (pieces && /^<0x[0-9A-F]{2}>$/.test(token)) return tokenTypes.byte;
    if (special.has(id)) return special.get(id) ? tokenTypes.control : tokenTypes.user;
    return tokenTypes.normal;
  });
  const text = (value: string): GgufValue => ({ type: "string", value });
  const out = new Map<string, GgufValue>([
    ["tokenizer.ggml.model", text(pieces ? "llama" : "gpt2")],
    ...(pieces ? [] : [["tokenizer.ggml.pre", text(cuttingOf(file, source))] as const]),
    ["tokenizer.ggml.tokens", { type: "array", itemType: "string", value: tokens }],
    ["tokenizer.ggml.token_type", { type: "array", itemType: "int32", value: Int32Array.from(types) }],
  ]);
  if (pieces) out.set("tokenizer.ggml.scores", { type: "array", itemType: "float32", value: scoresOf(tokens, merges) });
  else
    out.set("tokenizer.ggml.merges", {
      type: "array",
      itemType: "string",
      value: merges.map((pair) => pair.join(" ")),
    });
  const ids = new Map([...byId].map(([id, token]) => [token, id]));
  const named: readonly (readonly [string, string])[] = [
    ["bos", "bos_token"],
    ["eos", "eos_token"],
    ["unknown", "unk_token"],
    ["padding", "pad_token"],
  ];
  for (const [name, field] of named) {
    const value = config[field];
    const content = typeof value === "string" ? value : (value as { content?: string } | null | undefined)?.content;
    const id = content === undefined ? undefined : ids.get(content);
    if (id !== undefined) out.set(`tokenizer.ggml.${name}_token_id`, { type: "uint32", value: id });
  }
  const eos = Array.isArray(eosTokenId) ? eosTokenId[0] : eosTokenId;
  if (!out.has("tokenizer.ggml.eos_token_id") && Number.isInteger(eos))
    out.set("tokenizer.ggml.eos_token_id", { type: "uint32", value: eos as number });
  const begins = JSON.stringify((tokenizer as { post_processor?: unknown }).post_processor ?? null);
  const bos = config["bos_token"];
  const bosText = typeof bos === "string" ? bos : (bos as { content?: string } | null | undefined)?.content;
  out.set("tokenizer.ggml.add_bos_token", {
    type: "bool",
    value: bosText !== undefined && begins.includes(JSON.stringify(bosText)),
  });
  if (typeof config["chat_template"] === "string") out.set("tokenizer.chat_template", text(config["chat_template"]));
  return out;
}

function cuttingOf({ pre_tokenizer: cutting }: BpeFile, source: string): string {
  const description = JSON.stringify(cutting ?? null);
  const patterns = [...description.matchAll(/"Regex":"((?:[^"\\]|\\.)*)"/g)].map(
    ([, escaped]) => JSON.parse(`"${escaped}"`) as string,
  );
  for (const pattern of patterns) {
    const found = cuttings.find(([test]) => test.test(pattern));
    if (found) return found[1];
  }
  if (patterns.length === 0 && description.includes('"ByteLevel"')) return "gpt-2";
  throw new TokenizerError(
    `${source}: GGUF has no name for how this tokenizer cuts a text (${description.slice(0, 120)})`,
  );
}

/** Scores in the order of the merges, the first best, as SentencePiece numbers the pieces of a BPE; what no merge makes comes last. */
function scoresOf(tokens: readonly string[], merges: readonly (readonly [string, string])[]): Float32Array {
  const rank = new Map<string, number>();
  for (const [left, right] of merges) {
    const token = left + right;
    if (!rank.has(token)) rank.set(token, rank.size);
  }
  return Float32Array.from(tokens, (token) =>
    /^<.*>$/.test(token) && !rank.has(token) ? 0 : -(rank.get(token) ?? rank.size),
  );
}
