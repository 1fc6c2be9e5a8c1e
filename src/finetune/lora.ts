/**
 * LoRA as layers: each wraps a layer that stays as it is and adds a learnt update of low rank,
 * y = W x + (α / r) · B A x (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", section 4.1). Names, initialisation and
 * layouts are PEFT's. Which layers of a model are wrapped is `adapter.ts`.
 */
import type { DType } from "../core/dtype.ts";
import { BlockLinear } from "../models/blocks.ts";
import { Projection } from "../models/gpt2.ts";
import * as F from "../nn/functional.ts";
import { Embedding, type FactoryOptions, Linear, Module, Parameter } from "../nn/index.ts";
import * as init from "../nn/init.ts";
import { empty, type Tensor } from "../tensor/index.ts";
import { QuantizedLinear } from "./quantized-linear.ts";

/** What the layers of an adapter share: switching it switches all of them. */
export interface LoraSwitch {
  /** Whether the updates count. */
  enabled: boolean;
  /** Whether the updates have been added to the weights. */
  merged: boolean;
}

/** What a layer's update is like. */
export interface LoraSettings {
  /** The rank of the update. */
  readonly r: number;
  /** What the update is multiplied by: α / r, or α / √r (rsLoRA, Kalajdzievski 2023). */
  readonly scaling: number;
  /** Probability with which an input of the update is dropped in training. */
  readonly dropout: number;
  readonly state: LoraSwitch;
}

/** A kind of layer from [rows…, in] to [rows…, out] that can be adapted: one row of a table. */
interface LinearKind {
  readonly type: new (...args: never[]) => Module;
  readonly sizes: (layer: Module) => readonly [inputs: number, outputs: number];
  /** Whether the weight is stored as [in, out] (PEFT's fan_in_fan_out). */
  readonly transposed: (layer: Module) => boolean;
  /** The weight as floating numbers, in the layer's own layout. */
  readonly weight: (layer: Module) => Tensor;
}

/** What LoRA can wrap, beside embeddings. A new kind of linear layer is a row here. */
const linearKinds: readonly LinearKind[] = [
  {
    type: Linear,
    sizes: (layer) => [(layer as Linear).inFeatures, (layer as Linear).outFeatures],
    transposed: () => false,
    weight: (layer) => (layer as Linear).weight,
  },
  {
    type: Projection,
    sizes: (layer) => (layer as Projection).weight.shape as [number, number],
    transposed: () => true,
    weight: (layer) => (layer as Projection).weight,
  },
  {
    type: QuantizedLinear,
    sizes: (layer) => [(layer as QuantizedLinear).inFeatures, (layer as QuantizedLinear).outFeatures],
    transposed: (layer) => (layer as QuantizedLinear).transposed,
    weight: (layer) => (layer as QuantizedLinear).denseWeight(),
  },
  {
    type: BlockLinear,
    sizes: (layer) => [(layer as BlockLinear).inFeatures, (layer as BlockLinear).outFeatures],
    transposed: () => false,
    weight: (layer) => (layer as BlockLinear).weight,
  },
];

/** The row of a linear layer; undefined for any other module. */
export const linearKind = (layer: Module): LinearKind | undefined =>
  linearKinds.find(({ type }) => layer instanceof type);

/** Whether LoRA can wrap it. */
export const isAdaptable = (layer: Module): boolean => linearKind(layer) !== undefined || layer instanceof Embedding;

/** Sixteen bits are too coarse for small updates: adapters of such layers are float32, as PEFT's are. */
const adapterDType = (dtype: DType): DType => (dtype === "float64" ? "float64" : "float32");

const placeOf = (weight: Tensor): FactoryOptions => ({ dtype: adapterDType(weight.dtype), device: weight.device });

const describe = ({ r, scaling, dropout }: LoraSettings): string =>
  `r=${r}, scaling=${scaling}${dropout > 0 ? `, dropout=${dropout}` : ""}`;

/** A linear layer (nn.Linear, GPT-2's Conv1D, a quantised one) with a LoRA update: [rows…, in] → [rows…, out]. */
export class LoraLinear extends Module {
  static override readonly isPure = true;
  base_layer: Module;
  /** [r, in]: uniform within ±1 / √in at the start. */
  lora_A: Linear;
  /** [out, r]: zeros at the start, so that the model begins as it was. */
  lora_B: Linear;
  readonly settings: LoraSettings;
  constructor(base: Module, settings: LoraSettings) {
    super();
    const kind = linearKind(base)!;
    const [inputs, outputs] = kind.sizes(base);
    const place = placeOf(base instanceof QuantizedLinear ? base.absmax : kind.weight(base));
    this.settings = settings;
    this.base_layer = base;
    this.lora_A = new Linear(inputs, settings.r, { bias: false, ...place });
    this.lora_B = new Linear(settings.r, outputs, { bias: false, ...place });
    init.zeros_(this.lora_B.weight);
  }
  /** The base's own weight: for models that read it beside calling the layer. */
  get weight(): Tensor {
    return linearKind(this.base_layer)!.weight(this.base_layer);
  }
  get bias(): Parameter | null {
    return (this.base_layer as Linear).bias;
  }
  get inFeatures(): number {
    return linearKind(this.base_layer)!.sizes(this.base_layer)[0];
  }
  get outFeatures(): number {
    return linearKind(this.base_layer)!.sizes(this.base_layer)[1];
  }
  forward(x: Tensor): Tensor {
    const y = (this.base_layer as Linear).forward(x);
    const { state, dropout, scaling } = this.settings;
    if (!state.enabled || state.merged) return y;
    const dropped = F.dropout(x.to(this.lora_A.weight.dtype), { p: dropout, training: this.training });
    const update = this.lora_B.forward(this.lora_A.forward(dropped));
    return y.to(update.dtype).add(update.mul(scaling)).to(y.dtype); // rounded once, as in PEFT
  }
  /** What the update adds to the weight, in the layout of the weight: scaling · B A, transposed for Conv1D. */
  delta(): Tensor {
    const product = this.lora_B.weight.matmul(this.lora_A.weight).mul(this.settings.scaling);
    return linearKind(this.base_layer)!.transposed(this.base_layer) ? product.transpose(0, 1) : product;
  }
  override extraRepr(): string {
    return describe(this.settings);
  }
}

/** A table of vectors with a LoRA update, [ids…] → [ids…, width]: row i is increased by scaling · B A[:, i]. */
export class LoraEmbedding extends Module {
  static override readonly isPure = true;
  base_layer: Embedding;
  /** [r, rows]: zeros at the start. */
  lora_embedding_A: Parameter;
  /** [width, r]: standard normal at the start. */
  lora_embedding_B: Parameter;
  readonly settings: LoraSettings;
  constructor(base: Embedding, settings: LoraSettings) {
    super();
    const place = placeOf(base.weight);
    this.settings = settings;
    this.base_layer = base;
    this.lora_embedding_A = new Parameter(empty([settings.r, base.numEmbeddings], place));
    init.zeros_(this.lora_embedding_A);
    this.lora_embedding_B = new Parameter(empty([base.embeddingDim, settings.r], place));
    init.normal_(this.lora_embedding_B);
  }
  /** The base's own table: a head that is tied to it is not adapted, as in PEFT. */
  get weight(): Parameter {
    return this.base_layer.weight;
  }
  get numEmbeddings(): number {
    return this.base_layer.numEmbeddings;
  }
  get embeddingDim(): number {
    return this.base_layer.embeddingDim;
  }
  get paddingIdx(): number | null {
    return this.base_layer.paddingIdx;
  }
  forward(ids: Tensor): Tensor {
    const y = this.base_layer.forward(ids);
    const { state, scaling } = this.settings;
    if (!state.enabled || state.merged) return y;
    const { paddingIdx } = this;
    const rows = F.embedding(ids, this.lora_embedding_A.transpose(0, 1), { paddingIdx }); // [ids…, r]
    const update = F.linear(rows, this.lora_embedding_B);
    return y.to(update.dtype).add(update.mul(scaling)).to(y.dtype);
  }
  /** What the update adds to the table [rows, width]. */
  delta(): Tensor {
    return this.lora_embedding_B.matmul(this.lora_embedding_A).transpose(0, 1).mul(this.settings.scaling);
  }
  override extraRepr(): string {
    return describe(this.settings);
  }
}

export type LoraLayer = LoraLinear | LoraEmbedding;

export const isLoraLayer = (module: Module): module is LoraLayer =>
  module instanceof LoraLinear || module instanceof LoraEmbedding;

/** The layer with a LoRA update around it. */
export const withLora = (base: Module, settings: LoraSettings): LoraLayer =>
  base instanceof Embedding ? new LoraEmbedding(base, settings) : new LoraLinear(base, settings);
