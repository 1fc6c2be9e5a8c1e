/**
 * Tokenizers of repositories that are older than `tokenizer.json`: GPT-2's and RoBERTa's `vocab.json` with `merges.txt`, BERT's
 * `vocab.txt`, as the `tokenizer.json` that transformers makes of them.
 */
import { type Tokenizer, tokenizerFromJSON } from "../data/tokenizer.ts";
import { PretrainedError } from "./config.ts";

type Json = Readonly<Record<string, unknown>>;

export interface OlderFiles {
  /** A file of the folder as text; null where there is none. */
  readonly read: (name: string) => Promise<string | null>;
  /** tokenizer_config.json. */
  readonly settings: Json;
  /** What errors call the folder. */
  readonly folder: string;
}

/** Special tokens of the vocabulary, as they are added. A mask takes the space before it along, as in roberta-base's own tokenizer.json. */
function addedTokens(vocab: Readonly<Record<string, number>>, names: readonly string[], stripping?: string): object[] {
  return names
    .filter((content) => Object.hasOwn(vocab, content))
    .map((content) => ({
      id: vocab[content],
      content,
      single_word: false,
      lstrip: content === stripping,
      rstrip: false,
      normalized: false,
      special: true,
    }));
}

async function byteLevel({ read, settings, folder }: OlderFiles, isRoberta: boolean): Promise<Tokenizer | null> {
  const [vocabulary, merges] = [await read("vocab.json"), await read("merges.txt")];
  if (vocabulary === null || merges === null) return null;
  let vocab: Record<string, number>;
  try {
    vocab = JSON.parse(vocabulary);
  } catch (error) {
    throw new PretrainedError(`${folder}: vocab.json is not valid JSON (${(error as Error).message})`);
  }
  const bytes = { type: "ByteLevel", add_prefix_space: settings["add_prefix_space"] === true, trim_offsets: true };
  const around = { type: "RobertaProcessing", sep: ["</s>", vocab["</s>"]], cls: ["<s>", vocab["<s>"]] };
  const special = isRoberta ? ["<s>", "<pad>", "</s>", "<unk>", "<mask>"] : ["<|endoftext|>"];
  const lines = merges.split(/\r?\n/).filter((line, i) => line !== "" && !(i === 0 && line.startsWith("#version")));
  return tokenizerFromJSON(
    {
      version: "1.0",
      added_tokens: addedTokens(vocab, special, "<mask>"),
      normalizer: null,
      pre_tokenizer: { ...bytes, use_regex: true },
      post_processor: isRoberta ? around : bytes,
      decoder: bytes,
      model: { type: "BPE", vocab, merges: lines },
    },
    `${folder}: vocab.json and merges.txt`,
  );
}

async function wordPiece({ read, settings, folder }: OlderFiles): Promise<Tokenizer | null> {
  const text = await read("vocab.txt");
  if (text === null) return null;
  const lines = text.replace(/\r?\n$/, "").split(/\r?\n/);
  const vocab = Object.fromEntries(lines.map((token, id) => [token, id]));
  const id = (token: string): number => {
    if (!Object.hasOwn(vocab, token)) throw new PretrainedError(`${folder}: vocab.txt has no ${token}`);
    return vocab[token];
  };
  return tokenizerFromJSON(
    {
      version: "1.0",
      added_tokens: addedTokens(vocab, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]),
      normalizer: {
        type: "BertNormalizer",
        clean_text: true,
        handle_chinese_chars: settings["tokenize_chinese_chars"] !== false,
        strip_accents: settings["strip_accents"] ?? null,
        lowercase: settings["do_lower_case"] !== false,
      },
      pre_tokenizer: { type: "BertPreTokenizer" },
      post_processor: { type: "BertProcessing", sep: ["[SEP]", id("[SEP]")], cls: ["[CLS]", id("[CLS]")] },
      decoder: { type: "WordPiece", prefix: "##", cleanup: true },
      model: { type: "WordPiece", unk_token: "[UNK]", continuing_subword_prefix: "##", vocab },
    },
    `${folder}: vocab.txt`,
  );
}

/** By the `model_type` of a configuration. */
const kinds: Readonly<Record<string, (files: OlderFiles) => Promise<Tokenizer | null>>> = {
  gpt2: (files) => byteLevel(files, false),
  roberta: (files) => byteLevel(files, true),
  bert: wordPiece,
  distilbert: wordPiece,
};

/** Null where the architecture has no such files, or they are not there. Throws PretrainedError and TokenizerError where they are damaged. */
export const olderTokenizer = async (modelType: unknown, files: OlderFiles): Promise<Tokenizer | null> =>
  typeof modelType === "string" && Object.hasOwn(kinds, modelType) ? kinds[modelType](files) : null;
