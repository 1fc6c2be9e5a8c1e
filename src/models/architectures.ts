/**
 * The table of architectures: for each task and each `model_type` of a `config.json`, how the model is built and how a
 * checkpoint's keys become the model's own. A new architecture is a page of its own and a row here.
 */
import type { FactoryOptions, Module, StateDict } from "../nn/index.ts";
import { Bert, BertForSequenceClassification, bertConfigOf, RobertaForSequenceClassification } from "./bert.ts";
import type { ConfigReader } from "./config.ts";
import { CausalLM } from "./decoder.ts";
import { CausalLMForSequenceClassification, GPT2ForSequenceClassification } from "./decoder-classifier.ts";
import { decoders } from "./decoder-config.ts";
import { DistilBert, DistilBertForSequenceClassification, distilBertConfigOf } from "./distilbert.ts";
import { adaptGPT2StateDict, GPT2, gpt2ConfigOf } from "./gpt2.ts";
import { ResNetForImageClassification, resNetConfigOf } from "./resnet.ts";
import { textPartKeys } from "./text-part.ts";
import { ViTForImageClassification, vitConfigOf } from "./vit.ts";

/** What a model is loaded for, and what comes out of it. */
export interface Tasks {
  /** A language model that continues a text. */
  generation: CausalLM | GPT2;
  /** An encoder: a vector for every token of a text. */
  features: Bert | DistilBert;
  /** A classifier of texts. */
  classification:
    | BertForSequenceClassification
    | RobertaForSequenceClassification
    | DistilBertForSequenceClassification
    | CausalLMForSequenceClassification
    | GPT2ForSequenceClassification;
  /** A classifier of images. */
  "image-classification": ViTForImageClassification | ResNetForImageClassification;
}

export type Task = keyof Tasks;

export interface BuildOptions {
  /** Classes of a classification head: what the caller asks for, else what the configuration says. */
  readonly numLabels: number;
  /** Whether the checkpoint, its keys adapted, holds a tensor: for parts that some checkpoints lack. */
  has(key: string): boolean;
}

export interface Architecture<M extends Module> {
  build(config: ConfigReader, where: FactoryOptions, options: BuildOptions): M;
  /** The checkpoint under the model's keys, without what belongs to nothing (old buffers) or to another task's head. */
  adapt(tensors: Readonly<StateDict>, config: ConfigReader): StateDict;
  /** The keys of the task's head, which a checkpoint of the bare model lacks. */
  readonly head?: RegExp;
  /** What transformers calls the model, in the `architectures` of a config.json. */
  readonly transformers: string;
}

/** What becomes of a key: first the renamings, then it may be dropped, then the prefix is put before it or taken off. */
interface Keys {
  /** Put before keys that neither begin with it nor belong to the head. */
  readonly prefix?: string;
  /** Taken off the keys that begin with it. */
  readonly without?: string;
  readonly head?: RegExp;
  readonly drop?: readonly RegExp[];
  readonly rename?: readonly (readonly [RegExp, string])[];
}

function renamed(tensors: Readonly<StateDict>, { prefix, without, head, drop = [], rename = [] }: Keys): StateDict {
  const out: StateDict = {};
  for (const [name, x] of Object.entries(tensors)) {
    let key = rename.reduce((text, [pattern, by]) => text.replace(pattern, by), name);
    if (drop.some((pattern) => pattern.test(key))) continue;
    if (prefix !== undefined && !key.startsWith(prefix) && !head?.test(key)) key = prefix + key;
    if (without !== undefined && key.startsWith(without)) key = key.slice(without.length);
    out[key] = x;
  }
  return out;
}

// ---- language models --------------------------------------------------------------------------------------------------

/** Beginnings of transformers' names, where they are not the `model_type` with a capital. */
const names: Readonly<Record<string, string>> = { gemma3_text: "Gemma3", smollm3: "SmolLM3" };
const nameOf = (type: string): string => names[type] ?? type[0].toUpperCase() + type.slice(1);

/** A decoder's keys with a head: without the frequencies that old checkpoints hold, the parts that see, and what `drop` names. */
const decoderKeys = (head: RegExp, drop: readonly RegExp[]): Keys => ({
  prefix: "model.",
  head,
  drop: [/\.rotary_emb\.inv_freq$/, ...drop, ...textPartKeys.drop],
  rename: textPartKeys.rename,
});

const decoder = (type: string): Architecture<CausalLM> => ({
  build: (config, where) => new CausalLM(decoders[type](config), where),
  adapt: (tensors, config) => {
    // a head that is the embedding again
    const drop = decoders[type](config).tieEmbeddings ? [/^lm_head\.weight$/] : [];
    return renamed(tensors, decoderKeys(/^lm_head\./, drop));
  },
  transformers: `${nameOf(type)}ForCausalLM`,
});

/** A decoder that classifies: the head of its language model is left out. */
const decoderClassifier = (type: string): Architecture<CausalLMForSequenceClassification> => ({
  build: (config, where, { numLabels }) =>
    new CausalLMForSequenceClassification(decoders[type](config), numLabels, {
      ...where,
      padTokenId: config.padTokenId(),
    }),
  adapt: (tensors) => renamed(tensors, decoderKeys(/^score\./, [/^lm_head\./])),
  head: /^score\./,
  transformers: `${type === "gemma3_text" ? "Gemma3Text" : nameOf(type)}ForSequenceClassification`,
});

const gpt2: Architecture<GPT2> = {
  build: (config, where) => new GPT2({ ...gpt2ConfigOf(config), ...where }),
  adapt: (tensors) => adaptGPT2StateDict(tensors),
  transformers: "GPT2LMHeadModel",
};

const gpt2Classifier: Architecture<GPT2ForSequenceClassification> = {
  build: (config, where, { numLabels }) =>
    new GPT2ForSequenceClassification(gpt2ConfigOf(config), numLabels, { ...where, padTokenId: config.padTokenId() }),
  adapt: ({ "score.weight": score, ...tensors }) => ({
    ...adaptGPT2StateDict(tensors),
    ...(score && { "score.weight": score }),
  }),
  head: /^score\./,
  transformers: "GPT2ForSequenceClassification",
};

// ---- encoders of texts ------------------------------------------------------------------------------------------------

/** Positions that old checkpoints hold, the heads of pretraining, and TensorFlow's names of a norm's weight and bias. */
const bertKeys = {
  drop: [/(^|\.)embeddings\.position_ids$/, /^cls\./, /^lm_head\./, /^vocab_(transform|layer_norm|projector)\./],
  rename: [
    [/LayerNorm\.gamma$/, "LayerNorm.weight"],
    [/LayerNorm\.beta$/, "LayerNorm.bias"],
  ],
} as const;

/** A bare encoder, with the pooler where the checkpoint has one. */
const bertFeatures = (name: string, padding: boolean): Architecture<Bert> => ({
  build: (config, where, { has }) =>
    new Bert(bertConfigOf(config, { padding }), { ...where, pooler: has("pooler.dense.weight") }),
  adapt: (tensors) =>
    renamed(tensors, { ...bertKeys, drop: [...bertKeys.drop, /^(pre_)?classifier\./], without: `${name}.` }),
  transformers: padding ? "RobertaModel" : "BertModel",
});

const distilBertFeatures: Architecture<DistilBert> = {
  build: (config, where) => new DistilBert(distilBertConfigOf(config), where),
  adapt: (tensors) =>
    renamed(tensors, { ...bertKeys, drop: [...bertKeys.drop, /^(pre_)?classifier\./], without: "distilbert." }),
  transformers: "DistilBertModel",
};

const bertClassifier: Architecture<BertForSequenceClassification> = {
  build: (config, where, { numLabels }) =>
    new BertForSequenceClassification(bertConfigOf(config, { padding: false }), numLabels, where),
  adapt: (tensors) => renamed(tensors, { ...bertKeys, prefix: "bert.", head: /^classifier\./ }),
  head: /^classifier\./,
  transformers: "BertForSequenceClassification",
};

const robertaClassifier: Architecture<RobertaForSequenceClassification> = {
  build: (config, where, { numLabels }) =>
    new RobertaForSequenceClassification(bertConfigOf(config, { padding: true }), numLabels, where),
  adapt: (tensors) =>
    renamed(tensors, {
      ...bertKeys,
      drop: [...bertKeys.drop, /^(roberta\.)?pooler\./],
      prefix: "roberta.",
      head: /^classifier\./,
    }),
  head: /^classifier\./,
  transformers: "RobertaForSequenceClassification",
};

const distilBertClassifier: Architecture<DistilBertForSequenceClassification> = {
  build: (config, where, { numLabels }) =>
    new DistilBertForSequenceClassification(distilBertConfigOf(config), numLabels, where),
  adapt: (tensors) => renamed(tensors, { ...bertKeys, prefix: "distilbert.", head: /^(pre_)?classifier\./ }),
  head: /^(pre_)?classifier\./,
  transformers: "DistilBertForSequenceClassification",
};

// ---- images -----------------------------------------------------------------------------------------------------------

const vit: Architecture<ViTForImageClassification> = {
  build: (config, where, { numLabels }) => new ViTForImageClassification(vitConfigOf(config), numLabels, where),
  adapt: (tensors) =>
    renamed(tensors, {
      prefix: "vit.",
      head: /^classifier\./,
      drop: [/^(vit\.)?pooler\./, /^(vit\.)?embeddings\.mask_token$/, /^decoder\./],
    }),
  head: /^classifier\./,
  transformers: "ViTForImageClassification",
};

const resnet: Architecture<ResNetForImageClassification> = {
  build: (config, where, { numLabels }) => new ResNetForImageClassification(resNetConfigOf(config), numLabels, where),
  adapt: (tensors) => renamed(tensors, { prefix: "resnet.", head: /^classifier\./ }),
  head: /^classifier\./,
  transformers: "ResNetForImageClassification",
};

type Table = { readonly [T in Task]: Readonly<Record<string, Architecture<Tasks[T]>>> };

/** The table. It is made when it is asked for: what is made at load time a bundler would put on every page. */
export const architectures = (): Table => ({
  generation: { gpt2, ...Object.fromEntries(Object.keys(decoders).map((type) => [type, decoder(type)])) },
  features: {
    bert: bertFeatures("bert", false),
    roberta: bertFeatures("roberta", true),
    distilbert: distilBertFeatures,
  },
  classification: {
    bert: bertClassifier,
    roberta: robertaClassifier,
    distilbert: distilBertClassifier,
    gpt2: gpt2Classifier,
    ...Object.fromEntries(Object.keys(decoders).map((type) => [type, decoderClassifier(type)])),
  },
  "image-classification": { vit, resnet },
});
