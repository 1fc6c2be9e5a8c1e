/**
 * What a pretrained model will have resident at its peak in inference and in each kind of fine-tuning, by its `config.json` alone: steps of the
 * same model with few layers are planned (planning.ts) for two depths, and what a layer adds is added for the others. No weights are read or made.
 */
import { type DType, dtypes } from "../core/dtype.ts";
import { sizeOf } from "../core/shape.ts";
import {
  applyLora,
  finetune,
  languageTask,
  type Quantization,
  QuantizedLinear,
  quantizer,
  type Target,
  type Task,
  textTask,
} from "../finetune/index.ts";
import { sizesFor } from "../generate/readers.ts";
import { blockSize } from "../graph/composites/index.ts";
import { Storage } from "../graph/node.ts";
import { leaf } from "../graph/ops.ts";
import { BlockEmbedding, BlockLinear, isSplit } from "../models/blocks.ts";
import { replaceLayers } from "../models/from-parts.ts";
import type { Projection } from "../models/gpt2.ts";
import {
  type Architecture,
  architectures,
  ConfigReader,
  PretrainedError,
  type RawConfig,
  type StoredMatrix,
} from "../models/index.ts";
import { deferInit, Embedding, Linear, type Module } from "../nn/index.ts";
import { noGrad, randint, setData, Tensor } from "../tensor/index.ts";
import { lengthOfRows } from "./finetune-data.ts";
import { headsOf } from "./finetune-method.ts";
import { footprint, waitingLogits } from "./footprint.ts";
import { openPlanning, type PlannedProgram, planningDevice } from "./planning.ts";

export type MemoryMethod = "inference" | "lora" | "qlora" | "full";

export interface MemoryOptions {
  /** Sequences at once. Default: 1. */
  readonly batch?: number;
  /** Tokens of each. Default: 512, or the context where that is shorter. */
  readonly time?: number;
  /** Default: 16. */
  readonly rank?: number;
  /** The layers that an adapter is put around; quantised are all linear ones, as finetune does. Default: "all-linear". */
  readonly target?: Target;
  /** Of "qlora", by default "nf4"; in inference the layers are quantised where it is given. */
  readonly quantization?: Quantization;
  /** Matrices that stay in the blocks of their GGUF file, by their keys: in inference, and in "qlora" where `quantization` is not given. */
  readonly stored?: ReadonlyMap<string, StoredMatrix>;
  /** Of what is not quantised. Default: "float32". */
  readonly dtype?: DType;
  /** Whether blocks are computed again for the gradient. Default: false. */
  readonly recompute?: boolean;
  /** The backend that computes. Default: "cpu". */
  readonly device?: string;
  /** What lies beside the model: its kind and its number of tokens. Default: none. */
  readonly tokenizer?: { readonly kind: string; readonly size: number } | null;
  /** The depths, one or two, that are planned. Default: 2 and 4 layers, or the model's own where it is not deeper. */
  readonly depths?: readonly number[];
}

/** Bytes; `total` is the peak of a process that does nothing else. */
export interface ModelMemory {
  readonly parameters: number;
  /** What is learnt. */
  readonly trained: number;
  /** As they are held. */
  readonly weights: number;
  /** Moments of the optimiser; in inference the keys and values of `time` tokens. */
  readonly otherState: number;
  /** Activations, gradients, logits. */
  readonly temporaries: number;
  /** What was learnt at the best evaluation, of which finetune keeps a copy. */
  readonly best: number;
  /** Everything else: the runtime, heap, scratch, the batch. */
  readonly process: number;
  readonly total: number;
}

/** Node and the modules before anything is loaded, less what of the temporaries is never touched (measured on TinyLlama's shape). */
const IMPORTED_BYTES = 70e6;
/**
 * What is left of layers that are quantised as they are read: the device keeps freed blocks of up to 128 MiB (backends/cpu/memory.ts), of which
 * so much is still there at the peak, 100 MB more or less as the collector has it (measured on six models of 62 M to 1.1 billion parameters).
 */
const QUANTISED_BYTES = 110e6;
/** Of a tokenizer's heap for each token: its text in two tables, and in BPE the pair that it is merged of (measured on 16,000 to 152,000 tokens). */
const TOKEN_BYTES = { bpe: 760, other: 430 };
const tokenizerBytes = (tokenizer: { readonly kind: string; readonly size: number } | null): number =>
  tokenizer === null ? 0 : tokenizer.size * (tokenizer.kind.includes("bpe") ? TOKEN_BYTES.bpe : TOKEN_BYTES.other);
const shallow = [2, 4] as const;

const layerFields = ["num_hidden_layers", "n_layer", "n_layers"];

/** The configuration of the same model with `layers` layers, and how many it has. */
function withLayers(raw: RawConfig, layers: number | null): { readonly raw: RawConfig; readonly own: number } {
  const field = layerFields.find((name) => typeof raw[name] === "number");
  if (field === undefined)
    throw new PretrainedError(`config.json: none of ${layerFields.join(", ")} says how many layers the model has`);
  const own = raw[field] as number;
  if (layers === null) return { raw, own };
  const short = Object.entries(raw).map(([key, value]) =>
    Array.isArray(value) && value.length === own ? [key, value.slice(0, layers)] : [key, value],
  );
  return { raw: { ...Object.fromEntries(short), [field]: layers }, own };
}

/** A tensor with a place and without contents: nothing on the planning device has any. */
const blank = (shape: readonly number[], dtype: DType): Tensor =>
  new Tensor(leaf(new Storage(planningDevice, dtype, sizeOf(shape), {}), shape));

function blankQuantized(layer: Module, quantization: Quantization): QuantizedLinear {
  const [outFeatures, inFeatures] =
    layer instanceof Linear ? layer.weight.shape : [...(layer as Linear).weight.shape].reverse();
  const size = outFeatures * inFeatures;
  return new QuantizedLinear({
    inFeatures,
    outFeatures,
    quantization,
    transposed: !(layer instanceof Linear),
    weight:
      quantization === "nf4" ? blank([Math.ceil(size / 2), 1], "uint8") : blank([outFeatures, inFeatures], "uint8"),
    absmax: blank([quantization === "nf4" ? Math.ceil(size / 64) : outFeatures], "float32"),
    bias: (layer as Linear).bias,
  });
}

/** What stays in blocks of a layer with a weight of this name; null: nothing. */
function blankBlocks(
  layer: Module,
  matrix: StoredMatrix | undefined,
  dtype: DType,
): BlockLinear | BlockEmbedding | null {
  if (matrix === undefined || !(layer instanceof Linear || layer instanceof Embedding)) return null;
  const { format, shape, byteLength } = matrix;
  const [rows, width] = shape;
  const scales = isSplit(format) ? blank([rows, width / blockSize], "float16") : null;
  const codes = blank([rows, (byteLength - (scales ? bytesOf([scales]) : 0)) / rows], "uint8");
  const weight = { format, codes, scales };
  return layer instanceof Linear ? new BlockLinear(weight, dtype, layer.bias) : new BlockEmbedding(weight, dtype);
}

/** A language model, or an encoder with a head, which has only the first two. */
interface TextModel extends Module {
  readonly contextLength: number;
  forward(ids: Tensor, targets?: Tensor): Tensor;
  recompute?: boolean;
  decode(ids: Tensor, cache: unknown, count?: number): Tensor;
  createCache(options: { batchSize: number; capacity: number }): { truncate(length: number): void };
}

function build(raw: RawConfig, dtype: DType): TextModel {
  const reader = new ConfigReader(raw);
  const type = reader.text("model_type");
  const { generation, classification } = architectures();
  const table: Readonly<Record<string, Architecture<Module>>> = Object.hasOwn(generation, type)
    ? generation
    : classification;
  if (!Object.hasOwn(table, type))
    throw new PretrainedError(
      `config.json: the memory of "${type}" is not known; it is no model of texts that can be loaded`,
    );
  const { made, finish } = deferInit(() =>
    table[type].build(reader, { dtype, device: planningDevice }, { numLabels: 2, has: () => true }),
  );
  for (const tensor of [...made.parameters(), ...made.buffers()]) setData(tensor, blank(tensor.shape, tensor.dtype));
  finish();
  return made as unknown as TextModel;
}

const isLanguage = (model: TextModel): boolean => "createCache" in model;

interface Planned {
  readonly parameters: number;
  readonly trained: number;
  readonly weights: number;
  /** Of these what is in blocks as stored. */
  readonly blocks: number;
  /** Of layers that have been quantised, as they were. */
  readonly quantized: number;
  readonly step: PlannedProgram;
  /** What is read from the device: the logits of each token; in training the tensor that is being written to a file, and the one before. */
  readonly copies: number;
  /** Of each program, in the order in which they are run first. */
  readonly temporaries: readonly number[];
}

const bytesOf = (tensors: Iterable<Tensor>): number =>
  [...new Set(tensors)].reduce((n, x) => n + x.size * dtypes[x.dtype].bytes, 0);

/** What linear layers are quantised to as they are read, or which matrices stay as they are stored; null: all is floating. */
function quantizationOf(
  method: MemoryMethod,
  { quantization, stored }: MemoryOptions,
): Quantization | ReadonlyMap<string, StoredMatrix> | null {
  if (method === "qlora") return quantization ?? stored ?? "nf4";
  return method === "inference" ? (quantization ?? stored ?? null) : null;
}

/** Of all matrices that stay as they are stored. */
const storedBytes = (quantization: ReturnType<typeof quantizationOf>): number =>
  quantization === null || typeof quantization === "string"
    ? 0
    : [...quantization.values()].reduce((n, { byteLength }) => n + byteLength, 0);

/** Two steps of finetune with its evaluations, of a batch of texts of full length. */
async function rehearse(
  model: TextModel,
  { batch, time, recompute }: { readonly batch: number; readonly time: number; readonly recompute: boolean },
): Promise<void> {
  const text = isLanguage(model) ? { ids: new Int32Array(time + 1) } : { ids: new Int32Array(time), target: 0 };
  const task = isLanguage(model) ? languageTask({ maxLength: time }) : textTask({ maxLength: time });
  const data = Array<typeof text>(batch).fill(text);
  await finetune(model, {
    task: task as unknown as Task<TextModel, typeof text, unknown>,
    data,
    evaluation: data,
    batch,
    steps: 2, // the first makes the optimiser's state, the second is what all others are
    evaluateEvery: 1,
    ...(isLanguage(model) ? { recompute } : {}),
  });
}

async function planDepth(
  raw: RawConfig,
  method: MemoryMethod,
  options: MemoryOptions,
  programs: PlannedProgram[],
): Promise<Planned> {
  const { batch = 1, rank = 16, target = "all-linear", dtype = "float32" } = options;
  const quantization = quantizationOf(method, options);
  const model = build(raw, dtype);
  const parameters = model.parameterCount();
  const time = lengthOfRows(model, options.time);
  let quantized = 0;
  if (quantization !== null && typeof quantization !== "string")
    await replaceLayers(model, async (layer, path) => blankBlocks(layer, quantization.get(`${path}.weight`), dtype));
  else if (quantization !== null) {
    const make = (layer: Linear | Projection): QuantizedLinear => {
      quantized += bytesOf([layer.weight]);
      return blankQuantized(layer, quantization);
    };
    await replaceLayers(model, quantizer({ make }));
  }
  const blocks = bytesOf(
    model
      .modules()
      .flatMap((layer) => (layer instanceof BlockLinear || layer instanceof BlockEmbedding ? layer.buffers() : [])),
  );
  programs.length = 0;
  if (method === "inference") {
    model.eval();
    if (isLanguage(model)) {
      const { capacity, pieceLengths } = sizesFor(time, model.contextLength, batch);
      const cache = model.createCache({ batchSize: batch, capacity });
      // as generate reads a text: in pieces, then token by token
      for (const length of [...pieceLengths, 1]) {
        cache.truncate(0);
        await noGrad(() => model.decode(randint(0, 2, [batch, length], { device: planningDevice }), cache)).data();
      }
    } else await noGrad(() => model.forward(randint(0, 2, [batch, time], { device: planningDevice }))).data();
    const weights = bytesOf([...model.parameters(), ...model.buffers()]);
    const planned = summary(programs);
    const { outputBytes } = planned.step;
    const copies = isLanguage(model) ? waitingLogits(outputBytes, outputBytes / dtypes[dtype].bytes, time) : 0;
    return { parameters, trained: 0, weights, blocks, quantized, copies, ...planned };
  }
  if (method === "full") model.requiresGrad_(true);
  else applyLora(model, { r: rank, alpha: rank, target, modulesToSave: isLanguage(model) ? [] : headsOf(model) });
  await rehearse(model, { batch, time, recompute: options.recompute ?? false });
  const trained = model.parameters().filter((parameter) => parameter.requiresGrad);
  const weights = bytesOf([...model.parameters(), ...model.buffers()]);
  const copies = 2 * Math.max(...trained.map((tensor) => bytesOf([tensor])));
  return {
    parameters,
    trained: trained.reduce((n, p) => n + p.size, 0),
    weights,
    blocks,
    quantized,
    copies,
    ...summary(programs),
  };
}

/** Of what was run since the list was empty, the step: the last of the large ones; and the temporaries of each. */
function summary(ran: readonly PlannedProgram[]): Pick<Planned, "step" | "temporaries"> {
  const programs = [...new Set(ran)];
  const most = Math.max(...programs.map(({ nodes }) => nodes.length));
  const step = programs.findLast(({ nodes }) => nodes.length > most / 2) as PlannedProgram;
  return { step, temporaries: programs.map(({ program }) => program.stats.arenaBytes) };
}

/** The most temporaries of any program, which follow one another in one arena: some grow with the layers, others with the vocabulary. */
function mostTemporaries(
  depths: readonly (readonly number[])[],
  deep: (first: number, second: number) => number,
): number {
  const [first, second = first] = depths;
  // as many programs wherever only the layers are more
  if (first.length !== second.length) return deep(Math.max(...first), Math.max(...second));
  return Math.max(...first.map((bytes, i) => deep(bytes, second[i])));
}

/**
 * The memory of a language model, or of an encoder with two classes, by its parsed `config.json`. Opens the planning device and makes it the default: for a process that only plans.
 * Throws PretrainedError where the architecture is not known.
 */
export async function memoryOf(
  config: RawConfig,
  method: MemoryMethod,
  options: MemoryOptions = {},
): Promise<ModelMemory> {
  const device = options.device ?? "cpu";
  const programs = await planning(device);
  const { own } = withLayers(config, null);
  const depths = options.depths ?? (own <= shallow[1] ? [own] : shallow);
  const parts = [];
  const temporaries: number[][] = [];
  for (const depth of depths) {
    const planned = await planDepth(withLayers(config, depth).raw, method, options, programs);
    const foot = footprint(planned.step, planned.weights, device);
    const { weights, otherState, outputs, data, scratch, process } = foot;
    temporaries.push(planned.temporaries.map((bytes) => bytes + outputs));
    parts.push({
      parameters: planned.parameters,
      trained: planned.trained,
      weights: weights - planned.blocks,
      quantized: planned.quantized,
      otherState: Math.max(0, otherState),
      process: data + scratch + process + planned.copies,
    });
  }
  const [first, second = first] = parts;
  /** What the first depths say of the depth that the model has. */
  const deep = (a: number, b: number): number =>
    depths.length < 2 ? a : Math.round(a + ((b - a) / (depths[1] - depths[0])) * (own - depths[0]));
  const at = (key: keyof typeof first): number => deep(first[key], second[key]);
  const trained = at("trained");
  const sum = {
    parameters: at("parameters"),
    trained,
    // layers need not be stored alike, so that a few say nothing of the others
    weights: at("weights") + storedBytes(quantizationOf(method, options)),
    otherState: at("otherState"),
    temporaries: mostTemporaries(temporaries, deep),
    best: trained * (method === "full" ? dtypes[options.dtype ?? "float32"].bytes : 4),
    process:
      at("process") +
      IMPORTED_BYTES +
      Math.min(at("quantized"), QUANTISED_BYTES) +
      tokenizerBytes(options.tokenizer ?? null),
  };
  return { ...sum, total: sum.weights + sum.otherState + sum.temporaries + sum.best + sum.process };
}

let opened: { readonly device: string; readonly ran: Promise<PlannedProgram[]> } | null = null;

/** What the planning device, which a process has one of, would have run. */
function planning(device: string): Promise<PlannedProgram[]> {
  if (opened && opened.device !== device)
    throw new PretrainedError(`memoryOf: this process plans for ${opened.device}; ask for ${device} in another`);
  const open = async (): Promise<PlannedProgram[]> => {
    const ran: PlannedProgram[] = [];
    await openPlanning(device, (program) => ran.push(program));
    return ran;
  };
  opened ??= { device, ran: open() };
  return opened.ran;
}
