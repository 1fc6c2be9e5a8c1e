/**
 * Checkpoints of models that also see pictures: the language model in them is loaded, and the rest left out. Gemma 3 is stored like
 * that from 4 billion parameters on (Gemma Team 2025).
 */
import { ConfigReader, type RawConfig } from "./config.ts";

interface Wrapper {
  /** What the configuration of the language model leaves out where it has transformers' default. */
  readonly defaults: RawConfig;
  /** The class of transformers that is the language model alone. */
  readonly transformers: string;
}

/** By the `model_type` of the whole. */
const wrappers: Readonly<Record<string, Wrapper>> = {
  gemma3: {
    defaults: {
      model_type: "gemma3_text",
      vocab_size: 262208,
      hidden_size: 2304,
      intermediate_size: 9216,
      num_hidden_layers: 26,
      num_attention_heads: 8,
      num_key_value_heads: 4,
      max_position_embeddings: 131072,
    },
    transformers: "Gemma3ForCausalLM",
  },
};

/** Fields that the whole has for its parts, too. */
const shared = [
  "bos_token_id",
  "eos_token_id",
  "pad_token_id",
  "dtype",
  "torch_dtype",
  "id2label",
  "label2id",
] as const;

/** The configuration of the language model in a checkpoint; one that is nothing else is given back as it is. */
export function textPart(config: ConfigReader): ConfigReader {
  const wrapper = wrappers[String(config.raw["model_type"])];
  const part = config.part("text_config");
  if (wrapper === undefined || part === null) return config;
  const above = shared.filter((name) => config.has(name)).map((name) => [name, config.raw[name]] as const);
  const raw = { ...wrapper.defaults, ...part.raw, ...Object.fromEntries(above), architectures: [wrapper.transformers] };
  return new ConfigReader(raw, part.source);
}

/** How the language model's keys stand in a whole, old and new, and what does not belong to it. */
export const textPartKeys: {
  readonly rename: readonly (readonly [RegExp, string])[];
  readonly drop: readonly RegExp[];
} = {
  rename: [
    [/^language_model\./, ""],
    [/^model\.language_model\./, "model."],
  ],
  drop: [/^(model\.)?(vision_tower|multi_modal_projector)\./],
};
