/**
 * The decoders' table: how each architecture's `config.json` says what a DecoderConfig holds. A new member of the family is a
 * new row. Defaults are those of transformers' configuration classes, which leave out of the file what has its default.
 */
import { activationNames } from "./activations.ts";
import { type ConfigReader, PretrainedError } from "./config.ts";
import type { DecoderConfig, LayerConfig } from "./decoder.ts";
import { contextStretch, rotaryOf } from "./rotary.ts";

/** What all of them name alike, as Llama has it (Touvron et al. 2023; Grattafiori et al. 2024). */
function base(config: ConfigReader): Omit<DecoderConfig, "layers"> {
  const hiddenSize = config.count("hidden_size");
  const numHeads = config.count("num_attention_heads");
  const numKeyValueHeads = config.count("num_key_value_heads", numHeads);
  const headDim = config.count("head_dim", Math.floor(hiddenSize / numHeads));
  if (numHeads % numKeyValueHeads !== 0)
    throw new PretrainedError(
      `${config.source}: ${numHeads} attention heads can't share ${numKeyValueHeads} key-value heads evenly`,
    );
  return {
    vocabSize: config.count("vocab_size"),
    hiddenSize,
    intermediateSize: config.count("intermediate_size"),
    numHeads,
    numKeyValueHeads,
    headDim,
    contextLength: Math.floor(config.count("max_position_embeddings", 2048) * contextStretch(config)),
    activation: config.choice("hidden_act", activationNames(), "silu"),
    normEps: config.number("rms_norm_eps", 1e-6),
    zeroCentredNorms: false,
    sandwichNorms: false,
    queryKeyNorms: false,
    bias: { qkv: false, out: false, mlp: false },
    fusedProjections: false,
    embeddingScale: 1,
    attentionScale: 1 / Math.sqrt(headDim),
    attentionSoftcap: null,
    logitSoftcap: null,
    attentionDropout: config.number("attention_dropout", 0),
    tieEmbeddings: config.boolean("tie_word_embeddings", false),
    initializerRange: config.number("initializer_range", 0.02),
  };
}

/** Layers by their kinds, "full_attention" or "sliding_attention"; `usual` gives the kind of layer i where the file does not. */
function layersOf(
  config: ConfigReader,
  usual: (i: number) => LayerKind,
  rotary: (kind: LayerKind, i: number) => LayerConfig["rotary"],
  windowDefault?: number,
): LayerConfig[] {
  const count = config.count("num_hidden_layers");
  const kinds = config.texts(
    "layer_types",
    Array.from({ length: count }, (_, i) => usual(i)),
  );
  if (kinds.length !== count)
    throw new PretrainedError(`${config.source}: "layer_types" has ${kinds.length} entries for ${count} layers`);
  return kinds.map((kind, i) => {
    if (kind !== "full_attention" && kind !== "sliding_attention")
      throw new PretrainedError(
        `${config.source}: layer ${i} is of type ${JSON.stringify(kind)}; known are full_attention and sliding_attention`,
      );
    const window = kind === "sliding_attention" ? config.count("sliding_window", windowDefault) : null;
    return { window, rotary: rotary(kind, i) };
  });
}
type LayerKind = "full_attention" | "sliding_attention";

/** All layers full, with one rope. */
function fullLayers(config: ConfigReader, headDim: number): LayerConfig[] {
  const rotary = rotaryOf(config, headDim, { theta: 10000 });
  return Array.from({ length: config.count("num_hidden_layers") }, () => ({ window: null, rotary }));
}

/** All layers through the same window, or, where `sliding_window` is null, through none. */
function windowedLayers(config: ConfigReader, headDim: number, windowDefault: number | null): LayerConfig[] {
  const absent = config.raw["sliding_window"] === undefined;
  const window = absent ? windowDefault : config.has("sliding_window") ? config.count("sliding_window") : null;
  return fullLayers(config, headDim).map((layer) => ({ ...layer, window }));
}

/** Llama 1 to 3.x, SmolLM 1 and 2, and what else calls itself so. */
function llama(config: ConfigReader): DecoderConfig {
  const common = base(config);
  const attention = config.boolean("attention_bias", false);
  return {
    ...common,
    bias: { qkv: attention, out: attention, mlp: config.boolean("mlp_bias", false) },
    layers: fullLayers(config, common.headDim),
  };
}

/** Mistral (Jiang et al. 2023): Llama with a sliding window. */
function mistral(config: ConfigReader): DecoderConfig {
  const common = base(config);
  return { ...common, layers: windowedLayers(config, common.headDim, 4096) };
}

/** Qwen's windows: the layers from `max_window_layers` on, if `use_sliding_window`. */
function qwenLayers(config: ConfigReader, headDim: number): LayerConfig[] {
  const windowed = config.boolean("use_sliding_window", false) && config.raw["sliding_window"] !== null;
  const first = config.index("max_window_layers", 28);
  const rotary = rotaryOf(config, headDim, { theta: 10000 });
  const usual = (i: number): LayerKind => (windowed && i >= first ? "sliding_attention" : "full_attention");
  return layersOf(config, usual, () => rotary, 4096);
}

/** Qwen 2 and 2.5 (Yang et al. 2024): biases on query, key and value. */
function qwen2(config: ConfigReader): DecoderConfig {
  const common = base(config);
  return {
    ...common,
    bias: { qkv: true, out: false, mlp: false },
    layers: qwenLayers(config, common.headDim),
  };
}

/** Qwen 3 (Yang et al. 2025): normalised queries and keys instead. */
function qwen3(config: ConfigReader): DecoderConfig {
  const common = base(config);
  const headDim = config.count("head_dim", 128);
  const bias = config.boolean("attention_bias", false);
  return {
    ...common,
    headDim,
    attentionScale: 1 / Math.sqrt(headDim),
    bias: { qkv: bias, out: bias, mlp: false },
    queryKeyNorms: true,
    layers: qwenLayers(config, headDim),
  };
}

/** What Gemma 2 and 3 have in common: scaled and tied embeddings, zero-centred norms around each branch. */
function gemma(config: ConfigReader): Omit<DecoderConfig, "layers"> {
  config.expect("use_bidirectional_attention", false, "attention here is causal");
  const common = base(config);
  const bias = config.boolean("attention_bias", false);
  const cap = (name: string, usual: number | null): number | null =>
    config.raw[name] === undefined ? usual : config.has(name) ? config.number(name) : null;
  const second = config.raw["model_type"] === "gemma2";
  return {
    ...common,
    headDim: config.count("head_dim", 256),
    activation: config.choice("hidden_activation", activationNames(), "gelu_pytorch_tanh"),
    zeroCentredNorms: true,
    sandwichNorms: true,
    bias: { qkv: bias, out: bias, mlp: false },
    embeddingScale: Math.sqrt(common.hiddenSize),
    attentionScale: config.number("query_pre_attn_scalar", 256) ** -0.5,
    attentionSoftcap: second ? cap("attn_logit_softcapping", 50) : null,
    logitSoftcap: cap("final_logit_softcapping", second ? 30 : null),
    tieEmbeddings: config.boolean("tie_word_embeddings", true),
  };
}

/** Gemma 2 (Gemma Team 2024): every other layer sees through a window; scores and logits are capped. */
function gemma2(config: ConfigReader): DecoderConfig {
  const common = gemma(config);
  const rotary = rotaryOf(config, common.headDim, { theta: 10000 });
  const usual = (i: number): LayerKind => (i % 2 === 0 ? "sliding_attention" : "full_attention");
  return { ...common, layers: layersOf(config, usual, () => rotary, 4096) };
}

/** Gemma 3's text model (Gemma Team 2025): five windowed layers to a full one, each kind with a rope of its own. */
function gemma3(config: ConfigReader): DecoderConfig {
  const common = gemma(config);
  const ropes = {
    full_attention: rotaryOf(config, common.headDim, { theta: 1e6, layerType: "full_attention" }),
    sliding_attention: rotaryOf(config, common.headDim, {
      theta: 10000,
      thetaField: "rope_local_base_freq",
      layerType: "sliding_attention",
      scaled: false,
    }),
  };
  const every = config.count("sliding_window_pattern", config.count("_sliding_window_pattern", 6));
  const usual = (i: number): LayerKind => ((i + 1) % every === 0 ? "full_attention" : "sliding_attention");
  return { ...common, queryKeyNorms: true, layers: layersOf(config, usual, (kind) => ropes[kind], 4096) };
}

/** Phi-3 and Phi-4-mini (Abdin et al. 2024): Llama with joined projections and LongRoPE. */
function phi3(config: ConfigReader): DecoderConfig {
  for (const name of ["resid_pdrop", "embd_pdrop"])
    config.expect(name, 0, "nothing but attention weights is dropped in training");
  const common = base(config);
  return {
    ...common,
    normEps: config.number("rms_norm_eps", 1e-5),
    fusedProjections: true,
    layers: windowedLayers(config, common.headDim, null),
  };
}

/** SmolLM 3 (Bakouch et al. 2025): Llama in which every fourth layer has no rope. */
function smollm3(config: ConfigReader): DecoderConfig {
  const common = llama(config);
  const every = config.count("no_rope_layer_interval", 4);
  const hasRope = config.numbers(
    "no_rope_layers",
    common.layers.map((_, i) => ((i + 1) % every === 0 ? 0 : 1)),
  );
  const rotary = rotaryOf(config, common.headDim, { theta: 2e6 });
  const windowed = config.boolean("use_sliding_window", false) && config.has("sliding_window");
  const usual = (i: number): LayerKind => (windowed && hasRope[i] === 0 ? "sliding_attention" : "full_attention");
  const layers = layersOf(config, usual, (_, i) => (hasRope[i] === 0 ? null : rotary));
  return {
    ...common,
    tieEmbeddings: config.boolean("tie_word_embeddings", true),
    layers: layers.map((layer) => (windowed ? layer : { ...layer, window: null })),
  };
}

/** By `model_type`. */
export const decoders: Readonly<Record<string, (config: ConfigReader) => DecoderConfig>> = {
  llama,
  mistral,
  qwen2,
  qwen3,
  gemma2,
  gemma3_text: gemma3,
  phi3,
  smollm3,
};
