/**
 * The memory that a model will take: of a decoding step, of a LoRA, a QLoRA and a full training step. Each is planned on a device that
 * computes nothing (planning.ts), with weights that are not there. Of deep models few layers are planned, and the rest is reckoned: all
 * layers are alike.
 */
import { type DType, dtypes } from "../core/dtype.ts";
import { applyLora, QuantizedLinear } from "../finetune/index.ts";
import { Projection } from "../models/gpt2.ts";
import { architectures, ConfigReader, type GPT2, type RawConfig, type TextClassifier } from "../models/index.ts";
import { crossEntropy } from "../nn/functional.ts";
import { Linear, type Module, type StateDict, withDeferredInit } from "../nn/index.ts";
import { AdamW } from "../optim/index.ts";
import { asState, noGrad, realize, type Tensor, tensor, zeros } from "../tensor/index.ts";
import { openDevice } from "./device.ts";
import { footprint, totalOf } from "./footprint.ts";
import type { ModelFacts } from "./model-facts.ts";
import { openPlanning, type PlannedProgram, planningDevice } from "./planning.ts";

/** Bytes by what they are for. */
export type Parts = Readonly<Record<string, number>>;

export interface MemoryRow {
  readonly name: string;
  readonly peak: number;
  readonly parts: Parts;
}

export interface MemoryPlan {
  readonly device: string;
  readonly rows: readonly MemoryRow[];
}

interface Wanted {
  readonly batch: number;
  readonly length: number;
  readonly rank: number;
  readonly device: string | undefined;
}

/** Layers that are planned of a model that has more. */
const planned = [2, 4] as const;

/** What the process itself takes for it. */
const heapName = "heap and kernels";

type Use = "inference" | "LoRA" | "QLoRA" | "full training";

export async function planMemory(facts: ModelFacts, wanted: Wanted): Promise<MemoryPlan> {
  const device = await openDevice(wanted.device);
  const imports = process.memoryUsage().rss; // of a process that has loaded what these need, and nothing else
  const programs = await openPlanning(device);
  const uses: readonly Use[] = ["inference", "LoRA", "QLoRA", "full training"];
  const layers = layersOf(facts.config);
  const rows: MemoryRow[] = [];
  for (const use of uses) {
    const at = (count: number | null): Promise<Parts> => partsOf(use, facts, count, wanted, device, programs);
    let parts: Parts;
    if (layers === null || layers <= planned[1]) parts = await at(null);
    else parts = extended(await at(planned[0]), await at(planned[1]), layers);
    const all: Parts = { Node: imports, ...parts };
    rows.push({ name: use, peak: Object.values(all).reduce((a, b) => a + b, 0), parts: all });
  }
  return { device, rows };
}

const layerFields = ["num_hidden_layers", "n_layer", "n_layers"];

const layersOf = (config: RawConfig): number | null => {
  const field = layerFields.find((name) => typeof config[name] === "number");
  return field === undefined ? null : (config[field] as number);
};

/** The configuration of the same model with fewer layers. */
function withLayers(config: RawConfig, count: number | null): RawConfig {
  if (count === null) return config;
  const out: Record<string, unknown> = { ...config };
  for (const name of layerFields) if (typeof config[name] === "number") out[name] = count;
  for (const name of ["layer_types", "no_rope_layers"])
    if (Array.isArray(config[name])) out[name] = (config[name] as unknown[]).slice(0, count);
  return out;
}

/** A straight line through two plans. */
function extended(few: Parts, more: Parts, layers: number): Parts {
  const [a, b] = planned;
  return Object.fromEntries(
    Object.keys(more).map((name) => {
      const [low, high] = [few[name] ?? 0, more[name]];
      return [name, Math.max(0, Math.round(low + ((high - low) / (b - a)) * (layers - a)))];
    }),
  );
}

/** A model whose weights are only planned. */
async function emptyModel(facts: ModelFacts, use: Use, layers: number | null): Promise<Module> {
  const config = new ConfigReader(withLayers(facts.config, layers), facts.name);
  const table: Readonly<Record<string, { build: (...args: never[]) => Module }>> =
    architectures()[facts.task === "features" && use !== "inference" ? "classification" : facts.task];
  const where = { dtype: use === "full training" ? ("float32" as const) : loadedDType(facts), device: planningDevice };
  const options = { numLabels: config.labels(), has: () => true };
  const model = withDeferredInit(
    () => table[facts.architecture].build(config as never, where as never, options as never),
    (made) => {
      const nothing: StateDict = {};
      for (const [key, x] of Object.entries(made.stateDict()))
        nothing[key] = zeros(x.shape, { dtype: x.dtype, device: planningDevice });
      made.loadStateDict(nothing, { assign: true });
    },
  );
  await realize(...Object.values(model.stateDict()));
  return model;
}

/** What the weights become when they are loaded: blocks of GGUF are brought back to float32. */
function loadedDType({ types }: ModelFacts): DType {
  const [{ type }] = types;
  const known: Readonly<Record<string, DType>> = {
    bfloat16: "bfloat16",
    bf16: "bfloat16",
    float16: "float16",
    f16: "float16",
  };
  return known[type] ?? "float32";
}

const bytesOf = (tensors: Iterable<Tensor>): number => {
  let sum = 0;
  for (const x of tensors) sum += x.size * dtypes[x.dtype].bytes;
  return sum;
};

async function partsOf(
  use: Use,
  facts: ModelFacts,
  layers: number | null,
  wanted: Wanted,
  device: string,
  programs: PlannedProgram[],
): Promise<Parts> {
  const model = await emptyModel(facts, use, layers);
  const stored = bytesOf(new Set(Object.values(model.stateDict())));
  programs.length = 0;
  if (use === "inference") {
    const cache = await planInference(model, wanted);
    const step = programs.reduce((a, b) => (b.program.stats.arenaBytes > a.program.stats.arenaBytes ? b : a));
    const { temporaries, outputs, scratch, process: own } = footprint({ ...step, inputBytes: 0 }, stored, device);
    return {
      weights: stored,
      ...(cache > 0 ? { "keys and values": cache } : {}),
      activations: temporaries + outputs,
      scratch,
      [heapName]: own,
    };
  }
  if (use === "QLoRA") quantizeEmpty(model);
  if (use !== "full training") applyLora(model, { r: wanted.rank, alpha: wanted.rank });
  const step = await planTraining(model, wanted, programs);
  const weights = bytesOf(new Set([...model.parameters(), ...model.buffers()]));
  const { otherState, temporaries, outputs, data, scratch, process: own } = footprint(step, weights, device);
  const training = {
    weights,
    optimiser: Math.max(0, otherState),
    activations: temporaries + outputs,
    data,
    scratch,
    [heapName]: own,
  };
  if (use !== "QLoRA") return training;
  // The floating weights are there until the last of them has become codes
  const loading = { "weights as loaded": stored, weights, [heapName]: own };
  return totalOf(loading as never) > totalOf(training as never) ? loading : training;
}

/** Plans a piece of a prompt and one token after it; gives the bytes of the cache. An encoder reads a text. */
async function planInference(model: Module, { length }: Wanted): Promise<number> {
  if (!("createCache" in model)) {
    await realize(noGrad(() => (model as TextClassifier).forward(ids(1, length))));
    return 0;
  }
  const decoder = model as unknown as GPT2;
  const cache = decoder.createCache({ capacity: length });
  for (const time of [Math.min(64, Math.max(1, length - 1)), 1])
    await realize(noGrad(() => decoder.decode(ids(1, time), cache as never)));
  return bytesOf(cache.layers.flatMap(({ keys, values }) => [keys, values]));
}

const ids = (batch: number, time: number): Tensor =>
  tensor(new Int32Array(batch * time), { shape: [batch, time], dtype: "int32", device: planningDevice });

/** Plans the second step of a training, which is what all others are. */
async function planTraining(
  model: Module,
  { batch, length }: Wanted,
  programs: readonly PlannedProgram[],
): Promise<PlannedProgram> {
  const trained = model.parameters().filter(({ requiresGrad }) => requiresGrad);
  const optimizer = new AdamW(trained, { lr: 1e-4 });
  const decoder = "createCache" in model;
  model.train();
  for (let step = 0; step < 2; step++) {
    const loss = decoder
      ? (model as unknown as GPT2).forward(ids(batch, length), ids(batch, length))
      : crossEntropy(
          (model as TextClassifier).forward(ids(batch, length)),
          tensor(new Int32Array(batch), { device: planningDevice }),
        );
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    await loss.item();
  }
  const steps = programs.filter(({ writesState, nodes }) => writesState && nodes.length > 10);
  return steps[steps.length - 1];
}

/** Puts codes of NF4 that are not there in the place of every linear layer but the head. */
function quantizeEmpty(model: Module): void {
  const heads = new Set(["lm_head", "score", "classifier"]);
  const visit = (parent: Module, path: string): void => {
    for (const [name, child] of [...parent.namedChildren()]) {
      const own = path === "" ? name : `${path}.${name}`;
      if ((child instanceof Linear || child instanceof Projection) && !heads.has(own))
        parent.replaceChild(name, emptyCodes(child));
      else visit(child, own);
    }
  };
  visit(model, "");
}

function emptyCodes(layer: Linear | Projection): QuantizedLinear {
  const transposed = layer instanceof Projection;
  const [rows, columns] = layer.weight.shape;
  const [outFeatures, inFeatures] = transposed ? [columns, rows] : [rows, columns];
  const size = rows * columns;
  const state = (shape: number[], dtype: DType): Tensor => asState(zeros(shape, { dtype, device: planningDevice }));
  return new QuantizedLinear({
    inFeatures,
    outFeatures,
    quantization: "nf4",
    transposed,
    weight: state([Math.ceil(size / 2), 1], "uint8"),
    absmax: state([Math.ceil(size / 64)], "float32"),
    bias: layer.bias,
  });
}
