/** A gradient check (or several) for every differentiable row of the primitives and the composites. */
import * as c from "../../src/graph/composites/index.ts";
import { loop } from "../../src/graph/loop.ts";
import { make, type Node } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { primitives as p } from "../../src/graph/primitives.ts";
import { constants, distinct, given, integers, type Sample, sample } from "./gradients.ts";

export interface GradientCase {
  readonly row: string;
  readonly what: string;
  readonly inputs: readonly Sample[];
  readonly f: (inputs: readonly Node[]) => Node | readonly Node[];
}

const cases: GradientCase[] = [];
export const gradientCases: readonly GradientCase[] = cases;

function check(row: string, what: string, inputs: readonly Sample[], f: GradientCase["f"]): void {
  cases.push({ row, what, inputs, f });
}

// ---- elementwise --------------------------------------------------------------------------------------------------------

const both = sample([2, 3], -1.5, 1.5);
const positive = sample([2, 3], 0.3, 2);
const awayFromSteps = given([2, 3], [0.3, -0.3, 1.2, -1.2, 2.7, -2.7]);

for (const name of ["neg", "exp", "expm1", "sin", "cos", "atan", "tanh", "erf"] as const)
  check(name, name, [both], ([x]) => make(p[name], [x]));
for (const name of ["sqrt", "log", "log1p"] as const) check(name, name, [positive], ([x]) => make(p[name], [x]));
for (const name of ["abs", "sign", "floor", "ceil", "trunc", "round"] as const)
  check(name, name, [awayFromSteps], ([x]) => o.mul(make(p[name], [x]), x));

for (const name of ["add", "sub", "mul"] as const)
  check(name, name, [both, sample([2, 3], -1, 1, 5)], ([a, b]) => make(p[name], [a, b]));
check("mul", "a square", [both], ([a]) => make(p.mul, [a, a]));
check("div", "div", [both, positive], ([a, b]) => o.div(a, b));
check("pow", "both operands", [positive, both], ([a, b]) => o.pow(a, b));
check("pow", "a negative base with whole exponents", [both], ([a]) =>
  o.concat(
    [0, 1, 2, 3, 5].map((n) => o.pow(a, n)),
    0,
  ),
);
check("pow", "a zero base", [given([3], [0, 0, 0])], ([a]) => o.concat([o.pow(a, 2), o.pow(a, 3), o.pow(a, 1)], 0));
for (const name of ["max", "min"] as const)
  check(name, name, [distinct([2, 3]), distinct([2, 3], 0.25, 7)], ([a, b]) =>
    o.mul(make(p[name], [a, o.mul(b, 1.01)]), a),
  );
check("mod", "mod", [given([4], [2.5, -2.5, 2.5, -2.5]), given([4], [1.2, 1.2, -1.2, -1.2])], ([a, b]) => o.mod(a, b));
check("where", "where", [both, sample([2, 3], -1, 1, 9)], ([a, b]) => o.where(o.lt(a, 0.1), o.mul(a, a), o.mul(b, a)));
check("cast", "from and to float32", [both], ([x]) => o.cast(o.cast(o.mul(x, x), "float32"), "float64"));

// ---- movement -----------------------------------------------------------------------------------------------------------

/** Something curved behind a movement, so that its second order is checked. */
const curved = (x: Node): Node => o.mul(x, o.sin(x));

check("reshape", "reshape", [both], ([x]) => curved(o.reshape(curved(x), [3, 2])));
check("permute", "permute", [sample([2, 3, 2])], ([x]) => curved(o.permute(curved(x), [2, 0, 1])));
check("expand", "expand", [sample([3, 1])], ([x]) => curved(o.expandTo(x, [2, 3, 4])));
check("slice", "forwards with a step", [sample([5, 3])], ([x]) =>
  curved(
    o.slice(curved(x), [
      { start: 1, size: 2, step: 3 },
      { start: 0, size: 2, step: 1 },
    ]),
  ),
);
check("slice", "backwards with a step", [sample([6])], ([x]) =>
  curved(o.slice(curved(x), [{ start: 4, size: 2, step: -3 }])),
);
check("slice", "nothing", [sample([3])], ([x]) =>
  o.concat([o.slice(x, [{ start: 0, size: 0, step: 1 }]), curved(x)], 0),
);
check("pad", "around and between", [sample([2, 3])], ([x]) => curved(o.pad(curved(x), [1, 0], [0, 2], 0.5, [2, 1])));
check("window", "overlapping and dilated", [sample([7, 2])], ([x]) => curved(o.window(curved(x), [0], [3], [1], [2])));
check("window", "two axes", [sample([4, 5])], ([x]) => curved(o.window(curved(x), [0, 1], [2, 3], [2, 1], [1, 1])));
check("fold", "overlapping", [sample([3, 2, 3])], ([x]) => curved(o.fold(curved(x), [0], [3], [2], [1], [8])));
check("concat", "concat", [sample([2, 2]), sample([2, 3])], ([a, b]) => curved(o.concat([curved(a), curved(b), a], 1)));

// ---- reductions, prefixes, contraction ------------------------------------------------------------------------------------

const cube = sample([2, 3, 2], -1, 1);
const limit = (n: number): Node => o.scalar(n, "int32");
const zeros = given([2, 4], [0.5, 0, -1.5, 2, 0, 1.1, 0, 0.7]);

check("sum", "two axes", [cube], ([x]) => curved(o.sum(curved(x), [0, 2])));
check("sum", "up to a limit", [cube], ([x]) => curved(o.sum(curved(x), 1, { limit: limit(2) })));
check("prod", "no zeros", [cube], ([x]) => o.prod(x, [0, 2]));
check("prod", "zeros", [zeros], ([x]) => o.prod(x, 1));
check("prod", "up to a limit", [cube], ([x]) => curved(o.prod(x, 1, { limit: limit(2) })));
for (const name of ["reduceMax", "reduceMin"] as const) {
  check(name, "two axes", [distinct([2, 3, 2])], ([x]) => curved(make(p[name], [o.exp(x)], { axes: [0, 1] })));
  check(name, "up to a limit", [distinct([2, 3])], ([x]) => curved(make(p[name], [x, limit(2)], { axes: [1] })));
}
check("cumsum", "cumsum", [cube], ([x]) => curved(o.cumsum(curved(x), 1)));
check("cumprod", "no zeros", [sample([2, 5], 0.4, 1.4)], ([x]) => o.cumprod(x, 1));
check("cumprod", "zeros", [zeros], ([x]) => o.cumprod(x, 1));
check("cummax", "cummax", [distinct([2, 5])], ([x]) => curved(o.cummax(o.exp(x), 1)));
check("contract", "a batch", [sample([2, 2, 3]), sample([2, 3, 2])], ([a, b]) => curved(o.contract(a, b)));
check("contract", "turned operands", [sample([3, 2]), sample([2, 3])], ([a, b]) =>
  o.contract(o.transpose(a, 0, 1), o.transpose(b, 0, 1)),
);
check("contract", "matmul of a batch with a matrix", [sample([2, 2, 3]), sample([3, 2])], ([a, b]) => o.matmul(a, b));
check("contract", "matmul of vectors and broadcast batches", [sample([3]), sample([2, 3, 2])], ([a, b]) =>
  o.matmul(a, b),
);

// ---- indexed ------------------------------------------------------------------------------------------------------------------

check("gather", "repeats", [sample([3, 2])], ([x]) =>
  curved(o.gather(curved(x), 0, integers([2, 0, 2, 1, 0, 0, 1, 2], [4, 2]))),
);
check("gather", "take", [sample([4, 2])], ([x]) => curved(o.take(curved(x), 0, integers([3, 3, 1]))));
for (const mode of ["add", "set", "max"] as const)
  check("scatter", `${mode} with repeats`, [distinct([3, 2]), distinct([4, 2], 0.3, 3)], ([x, source]) =>
    curved(o.scatter(o.exp(x), 0, integers([2, 0, 2, 1, 0, 0, 2, 2], [4, 2]), o.exp(source), mode)),
  );
const offsets = (...at: number[]): Node[] => at.map((n) => o.scalar(n, "int32"));
check("dynamicSlice", "dynamicSlice", [sample([4, 3])], ([x]) =>
  curved(o.dynamicSlice(curved(x), offsets(1, 2), [2, 1])),
);
check("dynamicUpdate", "dynamicUpdate", [sample([4, 3]), sample([2, 1])], ([x, update]) =>
  curved(o.dynamicUpdate(curved(x), curved(update), offsets(1, 2))),
);
check("gather", "by the order of argsort", [distinct([2, 4])], ([x]) => curved(o.gather(x, 1, o.argsort(x, 1, true))));

// ---- state ----------------------------------------------------------------------------------------------------------------------

check("assign", "the value that a state got", [both], ([x]) =>
  curved(make(p.assign, [o.full([2, 3], 0, "float64"), curved(x)])),
);
check("output", "the second output", [sample([4, 2])], ([x]) => {
  const { mean, variance } = c.batchNorm(x, null, null, 1);
  return [curved(mean), curved(variance)];
});

// ---- composites -------------------------------------------------------------------------------------------------------------------

const apart = given([2, 3], [0.4, -0.4, 1.3, -1.3, 3, -3]);
check("relu", "relu", [apart], ([x]) => o.mul(c.relu(x), x));
check("sigmoid", "sigmoid", [apart], ([x]) => c.sigmoid(x));
check("silu", "silu", [apart], ([x]) => c.silu(x));
check("gelu", "erf", [apart], ([x]) => c.gelu(x));
check("gelu", "tanh", [apart], ([x]) => c.gelu(x, "tanh"));
check("softmax", "inner axis", [sample([2, 3, 2], -2, 2)], ([x]) => c.softmax(x, 1));
check("logSoftmax", "last axis", [sample([2, 3], -2, 2)], ([x]) => c.logSoftmax(x, -1));

const affine = [sample([3], 0.5, 1.5), sample([3])];
check("layerNorm", "weight and bias", [sample([2, 3], -2, 2), ...affine], ([x, w, b]) => c.layerNorm(x, 1, w, b));
check("layerNorm", "two axes, plain", [sample([2, 2, 2], -2, 2)], ([x]) => c.layerNorm(x, 2, null, null));
check("layerNorm", "all axes", [sample([2, 2]), sample([2, 2])], ([x, w]) => c.layerNorm(x, 2, w, null));
check("rmsNorm", "weight", [sample([2, 3], -2, 2), affine[0]], ([x, w]) => c.rmsNorm(x, 1, w));
check("rmsNorm", "plain", [sample([2, 3], -2, 2)], ([x]) => c.rmsNorm(x, 1, null));
check("batchNorm", "channels last", [sample([4, 3], -2, 2), ...affine], ([x, w, b]) => {
  const { y, mean, variance } = c.batchNorm(x, w, b, 1);
  return [y, mean, variance];
});
check("batchNorm", "channels second", [sample([2, 2, 3], -2, 2)], ([x]) => c.batchNorm(x, null, null, 1).y);
check(
  "batchNormEval",
  "everything",
  [sample([2, 3, 2], -2, 2), sample([3]), sample([3], 0.5, 1.5, 4), ...affine],
  ([x, m, v, w, b]) => c.batchNormEval(x, m, v, w, b, 1),
);

const plain = { stride: [1, 1], low: [0, 0], high: [0, 0], dilation: [1, 1], groups: 1 };
const convolutions: readonly { what: string; x: number[]; w: number[]; a: c.ConvAttrs }[] = [
  { what: "padded", x: [1, 3, 4, 2], w: [3, 2, 2, 3], a: { ...plain, low: [1, 0], high: [0, 1] } },
  { what: "strided", x: [2, 5, 4, 1], w: [2, 1, 2, 2], a: { ...plain, stride: [2, 3], low: [1, 1] } },
  { what: "dilated in groups", x: [1, 5, 4, 4], w: [2, 2, 2, 2], a: { ...plain, dilation: [2, 1], groups: 2 } },
  { what: "depthwise, strided", x: [1, 4, 4, 2], w: [2, 1, 3, 2], a: { ...plain, stride: [1, 2], groups: 2 } },
  { what: "padded beyond the kernel", x: [1, 2, 3, 1], w: [2, 1, 1, 2], a: { ...plain, low: [1, 2], high: [2, 0] } },
  { what: "one axis", x: [2, 5, 2], w: [2, 2, 3], a: { stride: [2], low: [1], high: [1], dilation: [1], groups: 1 } },
];
for (const { what, x, w, a } of convolutions) {
  const size = x.slice(1, -1);
  const kernel = w.slice(2);
  const out = size.map(
    (n, i) => Math.floor((a.low[i] + n + a.high[i] - a.dilation[i] * (kernel[i] - 1) - 1) / a.stride[i]) + 1,
  );
  const g = [x[0], ...out, w[0]];
  check("conv", what, [sample(x), sample(w, -1, 1, 3)], ([x, w]) => c.conv(x, w, a));
  check("convInputGradient", what, [sample(g), sample(w, -1, 1, 3)], ([g, w]) =>
    c.convInputGradient(g, w, { ...a, size }),
  );
  check("convWeightGradient", what, [sample(x), sample(g, -1, 1, 3)], ([x, g]) =>
    c.convWeightGradient(x, g, { ...a, kernel }),
  );
}

const bytes = (shape: number[]): Node => {
  const at = o.iota([shape[0] * shape[1]], 0);
  return o.reshape(o.cast(o.mod(o.mul(at, 37), 256), "uint8"), shape);
};
const scaled = (shape: number[]): Node => o.full(shape, 0.125, "float16");
check("blockLinear", "8 bits", [sample([2, 32])], ([x]) =>
  curved(c.blockLinear(x, bytes([3, 32]), scaled([3, 1]), { bits: 8 })),
);
check("blockLinear", "4 bits", [sample([1, 64])], ([x]) =>
  curved(c.blockLinear(x, bytes([2, 32]), scaled([2, 2]), { bits: 4 })),
);
for (const [format, width] of [
  ["q4_1", 64],
  ["q5_0", 32],
  ["q5_1", 32],
  ["q4_k", 256],
  ["q5_k", 256],
  ["q6_k", 256],
] as const)
  check("storedLinear", format, [sample([1, width])], ([x]) => {
    const { elements, bytes: each } = c.storedFormats[format];
    const some = o.and(o.cast(bytes([3, (width / elements) * each]), "int32"), elements === 32 ? 0x2f : 0x0f); // halves are below 0.13, or 0.0005
    return curved(c.storedLinear(x, o.cast(some, "uint8"), { format }));
  });
check("dequantize", "nf4", [sample([2]), sample([256, 2])], ([scales, values]) =>
  curved(c.dequantize(bytes([1, 50]), scales, values, { format: "nf4", rows: 4, columns: 25 })),
);
check("dequantize", "int8", [sample([3])], ([scales]) =>
  curved(c.dequantize(bytes([3, 5]), scales, null, { format: "int8", rows: 3, columns: 5 })),
);

const pool = { kernel: [2, 3], stride: [2, 2], low: [1, 0], high: [0, 1], dilation: [1, 1], ceilMode: false };
check("maxPool2d", "padded", [distinct([2, 4, 5, 1], 0.05)], ([x]) => curved(c.maxPool2d(o.exp(x), pool)));
check("maxPool2d", "overhanging", [distinct([1, 4, 4, 1])], ([x]) =>
  curved(c.maxPool2d(x, { ...pool, kernel: [3, 3], low: [0, 0], high: [0, 0], ceilMode: true })),
);
check("maxPool2dGradient", "padded", [distinct([2, 4, 5, 1]), sample([2, 2, 2, 1])], ([x, g]) =>
  c.maxPool2dGradient(x, o.mul(g, g), pool),
);
for (const countIncludePad of [true, false])
  check("avgPool2d", `countIncludePad ${countIncludePad}`, [sample([1, 4, 4, 2])], ([x]) =>
    curved(
      c.avgPool2d(x, {
        ...pool,
        kernel: [3, 3],
        low: [1, 1],
        high: [1, 1],
        ceilMode: true,
        countIncludePad,
        divisor: 0,
      }),
    ),
  );
check("avgPool2d", "a divisor", [sample([1, 3, 3, 1])], ([x]) =>
  c.avgPool2d(x, { ...pool, kernel: [2, 2], low: [0, 0], high: [0, 0], countIncludePad: true, divisor: 3 }),
);

const qkv = (heads: number, kvHeads: number, tq: number, tk: number): Sample[] => [
  sample([1, heads, tq, 2], -1, 1, 1),
  sample([1, kvHeads, tk, 2], -1, 1, 2),
  sample([1, kvHeads, tk, 2], -1, 1, 3),
];
const seen = (shape: number[], values: number[]): Node => o.lt(o.full(shape, 0, "int32"), integers(values, shape));
const attentions: readonly { what: string; inputs: Sample[]; options: () => c.AttentionOptions }[] = [
  { what: "plain", inputs: qkv(2, 2, 2, 3), options: () => ({}) },
  { what: "causal, grouped", inputs: qkv(4, 2, 3, 3), options: () => ({ causal: true, scale: 0.9 }) },
  { what: "a length", inputs: qkv(2, 1, 2, 4), options: () => ({ causal: true, length: limit(3) }) },
  { what: "a length without order", inputs: qkv(1, 1, 2, 4), options: () => ({ length: limit(3) }) },
  {
    what: "a mask that hides a whole row",
    inputs: qkv(1, 1, 2, 3),
    options: () => ({ mask: seen([2, 3], [0, 0, 0, 1, 0, 1]) }),
  },
];
for (const { what, inputs, options } of attentions) {
  check("attention", what, inputs, ([q, k, v]) => c.attention(q, k, v, options()).out);
  const [q, , v] = inputs;
  const [b, h, tq] = q.shape;
  check(
    "attentionBackward",
    what,
    [
      ...inputs,
      sample([b, tq, h, v.shape[3]], -1, 1, 4),
      sample([b, h, tq], 0.5, 1, 5),
      sample([b, tq, h, v.shape[3]], -1, 1, 6),
    ],
    ([q, k, v, out, lse, g]) => {
      const { causal = false, scale = 0.7, length = null, mask = null } = options();
      const attrs = { causal, scale, length: length !== null, mask: mask !== null };
      const { dq, dk, dv } = c.attentionBackward({ q, k, v, out, lse }, g, attrs, { length, mask });
      return [dq, dk, dv];
    },
  );
}
check("attention", "the log-sum-exp", qkv(2, 1, 2, 3), ([q, k, v]) => {
  const { out, lse } = c.attention(q, k, v, { causal: true });
  return [out, lse];
});
check(
  "attention",
  "an additive mask with a gradient",
  [...qkv(2, 2, 2, 3), sample([2, 1, 3], -1, 1, 8)],
  ([q, k, v, mask]) => c.attention(q, k, v, { mask }).out,
);

const logits = sample([4, 3], -2, 2);
const targets = (): Node => integers([2, 0, -100, 1]);
const classWeight = sample([3], 0.5, 2);
for (const reduction of ["mean", "sum", "none"] as const) {
  check("crossEntropy", reduction, [logits], ([x]) => c.crossEntropy(x, targets(), { reduction }));
  check("crossEntropy", `${reduction}, weights and smoothing`, [logits], ([x]) =>
    c.crossEntropy(x, targets(), { reduction, labelSmoothing: 0.2, weight: constants(classWeight) }),
  );
  check("nllLoss", reduction, [logits], ([x]) =>
    c.nllLoss(o.mul(x, x), targets(), { reduction, weight: constants(classWeight) }),
  );
  check("mseLoss", reduction, [both, positive], ([x, t]) => c.mseLoss(x, t, reduction));
  check("binaryCrossEntropyWithLogits", reduction, [apart, positive], ([x, t]) =>
    c.binaryCrossEntropyWithLogits(x, t, { reduction }),
  );
  check("linearCrossEntropy", reduction, [sample([4, 2]), sample([3, 2], -1, 1, 3)], ([h, w]) =>
    c.linearCrossEntropy(h, w, targets(), { reduction, chunk: 3, labelSmoothing: reduction === "sum" ? 0.1 : 0 }),
  );
}
check("crossEntropy", "class weights that want a gradient", [logits, classWeight], ([x, weight]) =>
  c.crossEntropy(x, targets(), { weight, labelSmoothing: 0.1 }),
);
check("nllLoss", "class weights that want a gradient", [logits, classWeight], ([x, weight]) =>
  c.nllLoss(x, targets(), { weight }),
);
check("binaryCrossEntropyWithLogits", "weights", [apart, positive], ([x, t]) => {
  const [weight, posWeight] = [sample([3], 0.5, 2, 4), sample([2, 1], 0.5, 2, 5)].map(constants);
  return c.binaryCrossEntropyWithLogits(x, t, { weight, posWeight });
});
check(
  "binaryCrossEntropyWithLogits",
  "weights with gradients",
  [apart, positive, sample([3], 0.5, 2, 4)],
  ([x, t, w]) => c.binaryCrossEntropyWithLogits(x, t, { weight: w, posWeight: w }),
);
for (const reduction of ["mean", "sum"] as const)
  check("crossEntropyGradient", reduction, [logits, sample([], 0.5, 1.5)], ([x, g]) => {
    const attrs = { ignoreIndex: -100, labelSmoothing: 0.1, reduction, weight: true };
    return c.crossEntropyGradient([x, targets(), constants(classWeight)], attrs, g);
  });
check(
  "linearCrossEntropyBackward",
  "both gradients",
  [sample([4, 2]), sample([3, 2], -1, 1, 3), sample([], 0.5, 1.5)],
  ([h, w, g]) => {
    const attrs = { ignoreIndex: -100, labelSmoothing: 0, reduction: "mean", chunk: 2, wide: false } as const;
    const { dhidden, dweight } = c.linearCrossEntropyBackward([h, w, targets()], g, attrs);
    return [dhidden, dweight];
  },
);

// ---- loops ----------------------------------------------------------------------------------------------------------------

for (const reverse of [false, true])
  check(
    "loop",
    `two carries, a sequence, a captured weight${reverse ? ", backwards" : ""}`,
    [sample([2, 3], -1, 1, 3), sample([2, 3], -1, 1, 4), sample([4, 2, 3], -1, 1, 5), sample([3, 3], -1, 1, 6)],
    ([h, m, xs, w]) => {
      const { carries, outputs } = loop(
        ([a, b], [x]) => {
          const next = o.tanh(o.add(o.matmul(a, w), o.mul(x, b)));
          return { carries: [next, o.add(o.mul(b, 0.5), o.sin(a))], outputs: [o.mul(next, x), o.sum(b)] };
        },
        { carries: [h, m], sequences: [xs], count: 4, reverse },
      );
      return [...carries, ...outputs];
    },
  );
check(
  "loop",
  "carries that change places, an integer carry",
  [sample([3], 0.5, 1, 3), sample([3], 0.5, 1, 4)],
  (inputs) => {
    const { carries } = loop(
      ([a, b, i]) => ({
        carries: [o.mul(b, o.cast(i, "float64")), a, o.add(i, 1)],
        outputs: [],
      }),
      { carries: [...inputs, integers([1, 2, 3])], count: 3 },
    );
    return carries.slice(0, 2).map(curved);
  },
);
check(
  "loop",
  "a loop in a loop",
  [sample([2], 0.5, 1, 3), sample([3, 2], 0.5, 1, 4), sample([2], 0.5, 1, 5)],
  ([h, xs, w]) => {
    const { carries, outputs } = loop(
      ([a], [x]) => {
        const inner = loop(
          ([b], [y]) => ({ carries: [o.sin(o.add(o.mul(b, w), o.mul(y, a)))], outputs: [o.mul(b, b)] }),
          {
            carries: [x],
            sequences: [xs],
            count: 3,
          },
        );
        return { carries: [o.mul(inner.carries[0], a)], outputs: [o.sum(inner.outputs[0], 0)] };
      },
      { carries: [h], sequences: [xs], count: 3, reverse: true },
    );
    return [...carries, ...outputs];
  },
);

// ---- recurrent ------------------------------------------------------------------------------------------------------------

for (const [name, gates, carries] of [
  ["rnn", 1, 1],
  ["lstm", 4, 2],
  ["gru", 3, 1],
] as const) {
  const [time, batch, width, hidden] = [3, 2, 2, 2];
  const samples = [
    sample([time, batch, width], -1, 1, 2),
    ...Array.from({ length: carries }, (_, i) => sample([batch, hidden], -1, 1, 3 + i)),
    sample([gates * hidden, width], -1, 1, 6),
    sample([gates * hidden, hidden], -1, 1, 7),
    sample([gates * hidden], -1, 1, 8),
    sample([gates * hidden], -1, 1, 9),
  ];
  const record = (inputs: readonly Node[], reverse: boolean, bias: boolean) => {
    const [x, ...others] = inputs;
    const states = others.slice(0, carries);
    const [wih, whh, bih, bhh] = others.slice(carries);
    return c.recurrent(name, { x, states, weights: [wih, whh], biases: bias ? [bih, bhh] : null, reverse });
  };
  for (const reverse of [false, true])
    check(name, `${reverse ? "backwards" : "forwards"}, the sequence and the last states`, samples, (inputs) => {
      const { y, states } = record(inputs, reverse, true);
      return [y, ...states];
    });
  check(name, "the last state alone, without biases", samples.slice(0, -2), (inputs) =>
    record(inputs, false, false).states.slice(-1),
  );
  check(
    `${name}Backward`,
    "all gradients",
    [...samples, sample([time, batch, hidden], -1, 1, 11), sample([batch, hidden], -1, 1, 12)],
    (inputs) => {
      const { y } = record(inputs.slice(0, -2), false, true);
      const [gy, gh] = inputs.slice(-2);
      return c.recurrentBackward(name, y, carries === 2 ? [gy, gh, null] : [gy, gh]);
    },
  );
}
check(
  "rnn",
  "relu",
  [sample([3, 2, 2], 0.2, 1, 2), sample([2, 2], 0.2, 1, 3), distinct([2, 2]), distinct([2, 2], 0.3)],
  (inputs) => {
    const [x, h, wih, whh] = inputs;
    return c.recurrent("rnn", { x, states: [h], weights: [wih, whh], nonlinearity: "relu" }).y;
  },
);
