/** Which files of a repository a model needs: what `fromPretrained`, the tokenizers and the adapters read, and nothing else. */
import { HubError } from "./errors.ts";

const always = [
  /^(config|generation_config|preprocessor_config)\.json$/,
  /^(tokenizer|tokenizer_config|special_tokens_map|added_tokens|chat_template)\.json$/,
  /^chat_template\.jinja$/,
  /^(modules|sentence_[\w-]+_config|config_sentence_transformers)\.json$/,
  /^\d+_\w+\/config\.json$/, // pooling, and what else sentence-transformers puts behind a model
  /^adapter_config\.json$/,
];
/** Tokenizers of repositories without a tokenizer.json. */
const olderTokenizers = /^(vocab\.(json|txt)|merges\.txt|tokenizer\.model|sentencepiece\.bpe\.model|spiece\.model)$/;

/** Files of weights, the first that is there is taken; one with an index stands for the files that the index names. */
const weights = [
  "model.safetensors",
  "model.safetensors.index.json",
  "adapter_model.safetensors",
  "pytorch_model.bin",
  "pytorch_model.bin.index.json",
  "adapter_model.bin",
] as const;

/** The small files. */
export function smallFiles(names: readonly string[]): string[] {
  const older = names.includes("tokenizer.json") ? [] : [olderTokenizers];
  return names.filter((name) => [...always, ...older].some((pattern) => pattern.test(name)));
}

/**
 * The files of weights; `read` gives the text of a file of the repository. Throws HubError where there are none, or the index names
 * what is not there.
 */
export async function weightFiles(
  id: string,
  names: readonly string[],
  read: (name: string) => Promise<string>,
): Promise<string[]> {
  const first = weights.find((name) => names.includes(name));
  if (first === undefined) {
    const gguf = names.filter((name) => /\.gguf$/i.test(name));
    const instead = gguf.length
      ? `; it has GGUF files, name one: ${gguf
          .slice(0, 5)
          .map((name) => `${id}/${name}`)
          .join(", ")}`
      : "";
    throw new HubError("NOT_FOUND", `${id}: there are no weights (${weights.join(", ")})${instead}`);
  }
  if (!first.endsWith(".index.json")) return [first];
  const shards = shardsOf(id, first, await read(first));
  const missing = shards.filter((name) => !names.includes(name));
  if (missing.length)
    throw new HubError("NOT_FOUND", `${id}: ${first} names ${missing.slice(0, 5).join(", ")}, which is not there`);
  return [first, ...shards];
}

function shardsOf(id: string, file: string, text: string): string[] {
  let map: unknown;
  try {
    map = (JSON.parse(text) as { weight_map?: unknown } | null)?.weight_map;
  } catch (cause) {
    throw new HubError("DAMAGED", `${id}: ${file} is not valid JSON (${(cause as Error).message})`, { cause });
  }
  const shards = typeof map === "object" && map !== null ? Object.values(map) : null;
  if (shards === null || !shards.every((shard) => typeof shard === "string"))
    throw new HubError("DAMAGED", `${id}: ${file}: "weight_map" must say the file of each tensor`);
  return [...new Set(shards as string[])].sort();
}
