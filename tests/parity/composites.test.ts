/**
 * The composites against PyTorch's float64 results (fixtures/composites.json, written by generate.py): forward in every
 * floating dtype, gradients too, on every backend present. Inputs are exact in every floating dtype.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gradientsOf } from "../../src/autograd/index.ts";
import type { Backend } from "../../src/backends/backend.ts";
import { type DType, isFloat, type TypedArray } from "../../src/core/dtype.ts";
import * as composites from "../../src/graph/composites/index.ts";
import { type Attrs, type Node, operations } from "../../src/graph/node.ts";
import { permute, scalar } from "../../src/graph/ops.ts";
import { backendsUnderTest, isBrief, leavesAlike } from "../support/backends.ts";
import { evaluate, nodeFrom } from "../support/evaluate.ts";
import { firstDifference, readFixture, type Stored, type Tolerance, valuesOf } from "../support/fixtures.ts";

interface Case {
  readonly name: string;
  readonly options: Attrs;
  /** Floating inputs, in the order in which PyTorch's function takes them; differentiable. */
  readonly inputs: Readonly<Record<string, Stored>>;
  /** Targets, masks, weights: given to every dtype as they are (floating ones in the dtype under test). */
  readonly constants: Readonly<Record<string, Stored>>;
  readonly seed: Stored;
  readonly outputs: Readonly<Record<string, Stored>>;
  readonly gradients: Readonly<Record<string, Stored>>;
}

type Nodes = Readonly<Record<string, Node>>;
type Build = (nodes: Nodes, options: Attrs) => Node | Nodes;

/** Moves the channels from PyTorch's place to the last, and back. */
const channelsLast = (x: Node): Node => permute(x, [0, ...x.shape.slice(2).map((_, i) => i + 2), 1]);
const channelsFirst = (x: Node): Node => permute(x, [0, x.shape.length - 1, ...x.shape.slice(2).map((_, i) => i + 1)]);

const list = (options: Attrs, name: string): readonly number[] => options[name] as readonly number[];
const orNull = (node: Node | undefined): Node | null => node ?? null;

function convAttrs(options: Attrs) {
  const padding = list(options, "padding");
  return {
    stride: list(options, "stride"),
    low: padding,
    high: padding,
    dilation: list(options, "dilation"),
    groups: options["groups"] as number,
  };
}

function poolAttrs(options: Attrs) {
  const [kernel, stride, padding] = [list(options, "kernel"), list(options, "stride"), list(options, "padding")];
  return { kernel, stride, low: padding, high: padding, ceilMode: options["ceilMode"] as boolean };
}

/** How a case is recorded with our builders. */
const builders: Readonly<Record<string, Build>> = {
  relu: ({ x }) => composites.relu(x),
  sigmoid: ({ x }) => composites.sigmoid(x),
  silu: ({ x }) => composites.silu(x),
  gelu: ({ x }, { approximate }) => composites.gelu(x, approximate as "none" | "tanh"),
  softmax: ({ x }, { axis }) => composites.softmax(x, axis as number),
  logSoftmax: ({ x }, { axis }) => composites.logSoftmax(x, axis as number),
  layerNorm: ({ x, weight, bias }, { dims, eps }) =>
    composites.layerNorm(x, dims as number, orNull(weight), orNull(bias), eps as number),
  rmsNorm: ({ x, weight }, { dims, eps }) => composites.rmsNorm(x, dims as number, orNull(weight), eps as number),
  batchNorm: ({ x, weight, bias }, { axis, eps }) =>
    composites.batchNorm(x, orNull(weight), orNull(bias), axis as number, eps as number),
  batchNormEval: ({ x, weight, bias, runningMean, runningVariance }, { axis, eps }) =>
    composites.batchNormEval(
      x,
      runningMean,
      runningVariance,
      orNull(weight),
      orNull(bias),
      axis as number,
      eps as number,
    ),
  conv: ({ x, weight }, options) => channelsFirst(composites.conv(channelsLast(x), weight, convAttrs(options))),
  convTranspose: ({ x, weight }, options) => {
    const attrs = convAttrs(options);
    const size = x.shape
      .slice(2)
      .map(
        (n, i) =>
          (n - 1) * attrs.stride[i] -
          2 * attrs.low[i] +
          attrs.dilation[i] * (weight.shape[i + 2] - 1) +
          list(options, "outputPadding")[i] +
          1,
      );
    return channelsFirst(composites.convInputGradient(channelsLast(x), weight, { ...attrs, size }));
  },
  maxPool2d: ({ x }, options) =>
    channelsFirst(
      composites.maxPool2d(channelsLast(x), { ...poolAttrs(options), dilation: list(options, "dilation") }),
    ),
  avgPool2d: ({ x }, options) =>
    channelsFirst(
      composites.avgPool2d(channelsLast(x), {
        ...poolAttrs(options),
        countIncludePad: options["countIncludePad"] as boolean,
        divisor: options["divisor"] as number,
      }),
    ),
  attention: ({ q, k, v, mask }, { causal, scale, length }) =>
    composites.attention(q, k, v, {
      causal: causal as boolean,
      ...(scale === undefined ? {} : { scale: scale as number }),
      ...(length === undefined ? {} : { length: scalar(length as number, "int32") }),
      mask: orNull(mask),
    }).out,
  crossEntropy: ({ x, target, weight }, options) =>
    composites.crossEntropy(x, target, { ...options, weight: orNull(weight) }),
  nllLoss: ({ x, target, weight }, options) => composites.nllLoss(x, target, { ...options, weight: orNull(weight) }),
  linearCrossEntropy: ({ hidden, weight, target }, options) =>
    composites.linearCrossEntropy(hidden, weight, target, options),
  mseLoss: ({ x, target }, { reduction }) => composites.mseLoss(x, target, reduction as composites.Reduction),
  binaryCrossEntropyWithLogits: ({ x, target, weight, posWeight }, { reduction }) =>
    composites.binaryCrossEntropyWithLogits(x, target, {
      weight: orNull(weight),
      posWeight: orNull(posWeight),
      reduction: reduction as composites.Reduction,
    }),
};

/**
 * Composites without a function in PyTorch to compare with: those that only gradients record, wrappers, what bitsandbytes has
 * (finetune.test.ts), and products with GGUF's blocks, which are compared with the floating weights (backends/cpu/program.decoding.test.ts,
 * models/blocks.test.ts).
 */
const withoutCases = [
  "blockLinear",
  "storedLinear",
  ...["attentionBackward", "convWeightGradient", "linearCrossEntropyBackward", "maxPool2dGradient"],
  ...["crossEntropyGradient", "checkpoint", "dequantize", "rnnBackward", "lstmBackward", "gruBackward"],
];

/** Compared as the layers that they are: layers.test.ts and recurrent.test.ts. */
const asLayers = ["rnn", "lstm", "gru"];

const { cases } = readFixture<{ cases: readonly Case[] }>("composites");

/** The composites that are there before a test defines one of its own. */
const rows = [...operations.values()].filter(({ group }) => group === "composite").map(({ name }) => name);

test("every composite has cases from PyTorch", () => {
  const covered = new Set([...cases.map(({ name }) => name), "convInputGradient", ...withoutCases, ...asLayers]);
  assert.deepEqual(
    rows.filter((name) => !covered.has(name)),
    [],
  );
  assert.deepEqual(
    [...new Set(cases.map(({ name }) => name))].filter((name) => !(name in builders)),
    [],
  );
});

/** Error allowed beside the largest number of a result, for what is summed and cancelled on the way. */
const scaled: Readonly<Record<string, { readonly rtol: number; readonly ofLargest: number }>> = {
  float64: { rtol: 1e-10, ofLargest: 1e-12 },
  float32: { rtol: 1e-5, ofLargest: 2e-6 },
  float16: { rtol: 2e-3, ofLargest: 2e-3 },
  bfloat16: { rtol: 2e-2, ofLargest: 2e-2 },
};

function toleranceFor(dtype: DType, expected: TypedArray): Tolerance {
  const { rtol, ofLargest } = scaled[dtype];
  let largest = 0;
  for (const value of expected) if (Number.isFinite(value)) largest = Math.max(largest, Math.abs(value));
  return { rtol, atol: ofLargest * largest + Number.MIN_VALUE };
}

interface Recorded {
  readonly inputs: Nodes;
  readonly outputs: Nodes;
}

function recordCase(backend: Backend, c: Case, dtype: DType, differentiate: readonly string[]): Recorded {
  const load = (stored: Stored): Node =>
    nodeFrom(backend, valuesOf(stored), stored.shape, isFloat(stored.dtype) ? dtype : stored.dtype);
  const nodes = new Map<string, Node>();
  for (const [name, stored] of Object.entries({ ...c.inputs, ...c.constants })) {
    const node = load(stored);
    node.requiresGrad = differentiate.includes(name);
    nodes.set(name, node);
  }
  const inputs = Object.fromEntries(nodes);
  const built = builders[c.name](inputs, c.options);
  return { inputs, outputs: "operation" in built ? { y: built as Node } : (built as Nodes) };
}

/** Nodes and what they should be. */
interface Expectation {
  readonly what: string;
  readonly dtype: DType;
  readonly node: Node;
  readonly expected: Stored;
}

/** Evaluates everything in one program, so that a backend which compiles does so less often. */
async function compare(backend: Backend, list: readonly Expectation[]): Promise<string[]> {
  const got = await evaluate(
    backend,
    list.map(({ node }) => node),
  );
  return list.flatMap(({ what, dtype, node, expected }, i) => {
    if (node.shape.join() !== expected.shape.join())
      return [`${what} is [${node.shape}], expected [${expected.shape}]`];
    const values = valuesOf(expected);
    const difference = firstDifference(got[i], values, toleranceFor(dtype, values));
    return difference ? [`${what}: ${difference}`] : [];
  });
}

/** The value of every output of a case. */
function forward(backend: Backend, c: Case, dtype: DType): Expectation[] {
  const { outputs } = recordCase(backend, c, dtype, []);
  return Object.entries(c.outputs).map(([name, expected]) => ({
    what: `${dtype}, ${show(c)}: ${name}`,
    dtype,
    node: outputs[name],
    expected,
  }));
}

/** The gradient of every input of a case. */
function gradients(backend: Backend, c: Case, dtype: DType): Expectation[] {
  const wanted = Object.keys(c.gradients);
  const { inputs, outputs } = recordCase(backend, c, dtype, wanted);
  const found = gradientsOf(
    [Object.values(outputs)[0]],
    [nodeFrom(backend, valuesOf(c.seed), c.seed.shape, dtype)],
    wanted.map((name) => inputs[name]),
  );
  return wanted.map((name, i) => ({
    what: `${dtype}, ${show(c)}: gradient of ${name}`,
    dtype,
    node: found[i] as Node,
    expected: c.gradients[name],
  }));
}

const floats: readonly DType[] = ["float64", "float32", "float16", "bfloat16"];
/** The dtypes of an ordinary run where kernels are compiled: for gradients, and for all on a device that compiles slowly. */
const few: readonly DType[] = ["float32"];
const show = (c: Case): string =>
  `${JSON.stringify(c.options)} of ${Object.entries({ ...c.inputs, ...c.constants })
    .map(([name, { shape }]) => `${name} [${shape}]`)
    .join(", ")}`;

for (const backend of await backendsUnderTest())
  describe(`${backend.name} agrees with PyTorch`, () => {
    for (const [part, record] of Object.entries({ forward, gradients }))
      for (const name of Object.keys(builders))
        test(`${name}, ${part}`, async () => {
          const dtypes = (part === "gradients" && leavesAlike(backend)) || isBrief(backend) ? few : floats;
          const present = dtypes.filter((each) => backend.dtypes.includes(each));
          const own = cases.filter((c) => c.name === name);
          const list = present.flatMap((dtype) => own.flatMap((c) => record(backend, c, dtype)));
          assert.deepEqual(await compare(backend, list), []);
        });
  });
