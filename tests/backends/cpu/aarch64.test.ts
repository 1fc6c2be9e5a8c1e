/**
 * Other processors: what the compiler makes for aarch64 (under qemu-user), for AVX2 and for AVX-512, compiled with the
 * runtime into one executable, gives what this machine's backend gave: training steps, every form of kernel, every builtin.
 */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { openCpuBackend } from "../../../src/backends/cpu/index.ts";
import { builtins } from "../../../src/backends/cpu/native.ts";
import { encodeTable } from "../../../src/backends/cpu/table.ts";
import { cpuFeatures, features, findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import { type DType, decode, dtypes } from "../../../src/core/dtype.ts";
import { quantizeLinear } from "../../../src/finetune/index.ts";
import {
  attention,
  blockLinear,
  dequantizeStored,
  type StoredFormat,
  storedFormats,
  storedLinear,
} from "../../../src/graph/composites/index.ts";
import { constant, dynamicUpdate, scalar } from "../../../src/graph/ops.ts";
import {
  arange,
  autocast,
  defineOperation,
  flush,
  manualSeed,
  nn,
  noGrad,
  optim,
  rand,
  randint,
  randn,
  registerBackend,
  setDevice,
  synchronize,
  Tensor,
  tensor,
  zeros,
} from "../../../src/index.ts";
import { ConvNet, GPT2 } from "../../../src/models/index.ts";
import { builtinsOf, isPresent, type Raw, Recorder, type Result, Target, type TargetSpec } from "./cross.harness.ts";

const F = nn.functional;
const long = process.env["NABLA_LONG"] === "1";
const skip = findCompiler() ? false : "no C compiler here";
const recorder = new Recorder();
const targets: Target[] = [];
const folder = mkdtempSync(join(tmpdir(), "nabla-cross-"));
after(() => rmSync(folder, { recursive: true, force: true }));

/** The targets, each with the reason why it can't be met here. */
async function known(): Promise<(TargetSpec & { readonly missing: string | false })[]> {
  const here = skip ? 0 : await cpuFeatures();
  const compiler = findCompiler();
  const native = compiler && compiler.command.length === 1 ? compiler.command[0] : "cc";
  const wide = features.avx512 | features.avx512vnni | features.avx512bf16;
  const x86 = here & features.x86 ? false : "this is no x86-64 processor";
  return [
    {
      name: "aarch64",
      compiler: "aarch64-linux-gnu-gcc",
      bits: features.arm64,
      runner: ["qemu-aarch64"],
      missing: ["aarch64-linux-gnu-gcc", "qemu-aarch64"].every(isPresent)
        ? false
        : "no aarch64-linux-gnu-gcc or no qemu-aarch64 here (Debian: gcc-aarch64-linux-gnu libc6-dev-arm64-cross qemu-user)",
    },
    { name: "avx2", compiler: native, bits: here & ~wide, runner: [], missing: x86 },
    {
      name: "avx512",
      compiler: native,
      bits: here | features.avx512,
      runner: here & features.avx512 ? [] : null,
      // where the processor has it, all other tests run it
      missing: x86 || (long ? false : "compiled for itself with NABLA_LONG=1"),
    },
  ];
}
const all = await known();

before(async () => {
  if (skip) return;
  const made = all.filter((t) => !t.missing).map((t) => Target.make(t, folder));
  targets.push(...(await Promise.all(made)));
  registerBackend("cpu", async () => recorder.wrap(await openCpuBackend(), targets));
  setDevice("cpu");
  for (const [label, body] of Object.entries(bodies)) {
    manualSeed(5);
    await flush("cpu");
    await body((values) => {
      recorder.label = label;
      return values;
    });
    await flush("cpu");
    recorder.label = "";
  }
});

/** Computes leaves first, so that what is recorded is what is made of them. */
type Begin = <T extends readonly Tensor[]>(values: T) => T;
const ready = async <T extends readonly Tensor[]>(begin: Begin, ...values: T): Promise<T> => {
  for (const v of values) await v.keep();
  await flush("cpu");
  return begin(values);
};
const read = async (values: readonly Tensor[]): Promise<void> => {
  for (const v of values) v.keep();
  await flush("cpu");
};
const leaf = (...shape: number[]): Tensor => randn(shape, { requiresGrad: true });
/** Reads what f makes of leaves, and their gradients, as one program. */
const differentiate =
  (make: () => Tensor[], f: (...x: Tensor[]) => Tensor) =>
  async (begin: Begin): Promise<void> => {
    const leaves = await ready(begin, ...make());
    const y = f(...leaves);
    const weights = noGrad(() => arange(y.numel()).reshape(y.shape).mul(0.37).sin());
    y.mul(weights).sum().backward();
    await read([y, ...leaves.map((x) => x.grad as Tensor)]);
  };

const own = defineOperation<{ by: number }>({
  name: "cross.scaled",
  forward: ([x], { by }) => x.mul(by).exp(),
  kernels: {
    cpu: ([x], _, { by }) => ({
      rows: x.shape[0],
      body: `for (nb_i64 r = r0; r < r1; r++)
  for (int c = 0; c < ${x.shape[1]}; c += L) {
    const int n = ${x.shape[1]} - c < L ? ${x.shape[1]} - c : L;
    f_storen(out0 + r * ${x.shape[1]} + c, f_exp(f_loadn(in0 + r * ${x.shape[1]} + c, n) * ${by.toExponential()}f), n);
  }`,
    }),
  },
});

const bodies: Record<string, (begin: Begin) => Promise<void>> = {
  "products in bfloat16": async (begin) => {
    const [x, w] = await ready(begin, randn([33, 47]), randn([29, 47]));
    await read(autocast({}, () => [F.linear(x, w), x.transpose(0, 1).matmul(x)]));
  },
  "a step of a GPT with dropout and AdamW": async (begin) => {
    const model = new GPT2({
      vocabSize: 41,
      contextLength: 24,
      numLayers: 2,
      numHeads: 2,
      hiddenSize: 48,
      dropout: 0.1,
    });
    const optimizer = new optim.AdamW(model.parameters(), { lr: 1e-3, eps: 0.1, weightDecay: 0.1 });
    const ids = randint(0, 41, [3, 24]);
    const next = randint(0, 41, [3, 24]);
    await ready(begin, ids, next, ...model.parameters());
    for (let i = 0; i < 2; i++) {
      const loss = model.forward(ids, next);
      loss.backward();
      await optimizer.step();
      optimizer.zeroGrad();
      await loss.item();
    }
  },
  "a step of a convolutional network with Adam": async (begin) => {
    const model = new ConvNet({ imageSize: [12, 12], channels: [8, 19], hiddenSize: 33 });
    const optimizer = new optim.Adam(model.parameters(), { lr: 1e-3, eps: 0.1 });
    const x = rand([6, 1, 12, 12]);
    const labels = randint(0, 10, [6]);
    await ready(begin, x, labels, ...model.parameters());
    const loss = F.crossEntropy(model.forward(x), labels);
    loss.backward();
    await optimizer.step();
    await loss.item();
  },
  "softmax, over the last axis and the first": differentiate(
    () => [leaf(37, 67)],
    (x) => x.softmax(-1).add(x.softmax(0)).add(x.logSoftmax(-1)),
  ),
  "layer norm with its parameters": differentiate(
    () => [leaf(2, 19, 83), leaf(83), leaf(83)],
    (x, weight, bias) => F.layerNorm(x, 83, { weight, bias }),
  ),
  "cross-entropy": async (begin) => {
    const [logits, labels] = await ready(begin, leaf(29, 53), randint(0, 53, [29]));
    const loss = F.crossEntropy(logits, labels, { labelSmoothing: 0.1 });
    loss.backward();
    await read([loss, logits.grad as Tensor]);
  },
  "batch norm and pooling": differentiate(
    () => [leaf(4, 5, 9, 11)],
    (x) =>
      F.maxPool2d(F.batchNorm(x, zeros([5]), zeros([5]).add(1), { training: true }), 2).add(F.avgPool2d(x, 3).mean()),
  ),
  "convolutions of several strides, groups and paddings": differentiate(
    () => [leaf(2, 6, 13, 10), leaf(8, 6, 3, 3), leaf(10, 3, 2, 4)],
    (x, a, b) =>
      F.conv2d(x, a, null, { padding: 1, stride: 2 })
        .flatten(1)
        .narrow(1, 0, 100)
        .add(
          F.conv2d(x, b, null, { groups: 2, dilation: [2, 1], padding: 2 })
            .flatten(1)
            .narrow(1, 0, 100),
        ),
  ),
  "attention, causal and not, with fewer key heads": async (begin) => {
    const make = (h: number, t: number): Tensor => leaf(2, h, t, 24);
    const [q, k, v, k2, v2] = await ready(begin, make(4, 33), make(4, 33), make(4, 33), make(2, 70), make(2, 70));
    const a = F.scaledDotProductAttention(q, k, v, { isCausal: true });
    const b = F.scaledDotProductAttention(q, k2, v2, { enableGqa: true });
    const y = a.add(b);
    y.square().sum().backward();
    await read([y, ...[q, k, v, k2, v2].map((x) => x.grad as Tensor)]);
  },
  "products of every shape and dtype": async (begin) => {
    const shapes = [
      [1, 300, 70],
      [3, 64, 129],
      [100, 130, 90],
      [65, 17, 33],
      [128, 1, 64],
      [40, 520, 1],
      [1, 4101, 10],
    ];
    const leaves = shapes.flatMap(([m, k, n]) => [randn([m, k]), randn([n, k])]);
    const batched = [randn([5, 20, 30]), randn([5, 30, 24]), randn([2, 3, 17, 40]), randn([40, 50])];
    const values = await ready(begin, ...leaves, ...batched);
    const products = shapes.flatMap((_, i) => {
      const [a, b] = [values[2 * i], values[2 * i + 1]];
      return [a.matmul(b.t()), b.matmul(a.t()).add(1).relu()];
    });
    const [a, b, c, d] = values.slice(-4);
    const [e, f] = [values[4], values[5]];
    products.push(a.matmul(b), c.matmul(d));
    products.push(e.double().matmul(f.double().t()));
    products.push(e.mul(9).int().matmul(f.mul(9).int().t()));
    products.push(e.half().matmul(f.half().t()), e.bfloat16().matmul(f.bfloat16().t()));
    await read(products);
  },
  "products with weights in 4 and 8 bits": async (begin) => {
    const layers = [];
    for (const quantization of ["nf4", "int8"] as const)
      layers.push(await quantizeLinear(new nn.Linear(300, 70, { bias: false }), { quantization }));
    const buffers = layers.flatMap((layer) => layer.buffers());
    const [few, many, dy] = await ready(begin, randn([3, 300]), randn([50, 300]), randn([50, 70]), ...buffers);
    await read(
      layers.flatMap((layer) => {
        const weight = layer.dequantize();
        return [layer.forward(few), layer.forward(many), dy.matmul(weight), weight.sum(0)];
      }),
    );
  },
  "a cache, and weights in blocks": async (begin) => {
    const codes = [randint(0, 256, [70, 96]), randint(0, 256, [70, 48])].map((x) => x.to({ dtype: "uint8" }));
    const scales = randn([70, 3]).mul(0.01).half();
    const rows = [randn([1, 96]), randn([7, 96])];
    const cache = [randn([1, 2, 40, 16]), randn([1, 2, 40, 16]).bfloat16(), randn([1, 2, 40, 16]).half()];
    const [c8, c4, s, x1, x7, q, q5, wide, brain, half, fresh] = await ready(
      begin,
      ...[...codes, scales, ...rows, randn([1, 4, 1, 16]), randn([1, 4, 5, 16])],
      ...[...cache, randn([1, 2, 1, 16])],
    );
    const products = [x1, x7].flatMap((x) => [
      new Tensor(blockLinear(x.node, c8.node, s.node, { bits: 8 })),
      new Tensor(blockLinear(x.node, c4.node, s.node, { bits: 4 })),
    ]);
    const [zero, at, length] = [constant(0, "int32"), scalar(11, "int32"), scalar(12, "int32")];
    const updated = dynamicUpdate(wide.node, fresh.node, [zero, zero, at, zero]);
    const over = (query: Tensor, memory: Tensor): Tensor => {
      const [keys, asked] = [memory.node, query.to({ dtype: memory.dtype }).node];
      return new Tensor(attention(asked, keys, keys, { causal: true, length }).out);
    };
    const seen = [wide, brain, half].flatMap((memory) => [over(q, memory), over(q5, memory)]);
    await read([...products, new Tensor(updated), ...seen]);
  },
  "one row of x that the first cache can't keep": async (begin) => {
    const [rows, K] = [11, 8192];
    const bytes = (columns: number) => randint(0, 0x30, [rows, columns]).to({ dtype: "uint8" });
    const inputs = [
      randn([1, K]),
      bytes(K),
      bytes(K / 2),
      randn([rows, K / 32])
        .mul(0.01)
        .half(),
    ];
    const [x, c8, c4, s, k, q5] = await ready(begin, ...inputs, bytes((K / 256) * 144), bytes((K / 32) * 22));
    await read([
      new Tensor(blockLinear(x.node, c8.node, s.node, { bits: 8 })),
      new Tensor(blockLinear(x.node, c4.node, s.node, { bits: 4 })),
      new Tensor(storedLinear(x.node, k.node, { format: "q4_k" })),
      new Tensor(storedLinear(x.node, q5.node, { format: "q5_0" })),
    ]);
  },
  "weights in a file's blocks": async (begin) => {
    const formats = Object.entries(storedFormats) as [StoredFormat, { elements: number; bytes: number }][];
    // whatever of these bytes is a half is below 0.13
    const weights = formats.map(([, { elements, bytes }]) =>
      randint(0, 0x30, [70, (256 / elements) * bytes]).to({ dtype: "uint8" }),
    );
    const [x1, x5, x50, dy, ...blocks] = await ready(
      begin,
      ...[randn([1, 256]), randn([5, 256]), randn([50, 256]), randn([3, 70]), ...weights],
    );
    await read(
      formats.flatMap(([format], i) => [
        ...[x1, x5, x50].map((x) => new Tensor(storedLinear(x.node, blocks[i].node, { format }))),
        dy.matmul(new Tensor(dequantizeStored(blocks[i].node, format))),
      ]),
    );
  },
  "functions of float32": async (begin) => {
    const [x] = await ready(begin, randn([3, 131]).mul(4));
    const y = x.abs().add(0.1);
    await read([
      ...[
        x.exp(),
        x.expm1(),
        y.log(),
        y.log1p(),
        x.sin(),
        x.cos(),
        x.atan(),
        x.tanh(),
        x.erf(),
        x.sigmoid(),
        F.gelu(x),
      ],
      ...[x.floor(), x.ceil(), x.trunc(), x.round(), x.sign(), y.sqrt(), y.rsqrt(), y.pow(x), x.remainder(1.5)],
      ...[x.lt(0), x.ge(y), x.clamp(-1, 1), x.int(), x.gt(0).logicalOr(y.lt(1)), x.maximum(y.neg())],
    ]);
  },
  "functions of float64": async (begin) => {
    const [x] = await ready(begin, randn([3, 37], { dtype: "float64" }).mul(3));
    const y = x.abs().add(0.1);
    await read([
      x.exp(),
      y.log(),
      x.sin(),
      x.tanh(),
      x.erf(),
      y.pow(x),
      x.floor(),
      x.softmax(-1),
      x.sum(0),
      x.lt(0),
      x.float(),
    ]);
  },
  "halves and bfloat16": async (begin) => {
    const [x] = await ready(begin, randn([5, 77]));
    const results = (["half", "bfloat16"] as const).flatMap((to) => {
      const y = x[to]();
      return [y.mul(y), y.exp(), y.softmax(-1), y.sum(0), y.t(), y.float(), y.gt(0)];
    });
    await read(results);
  },
  integers: async (begin) => {
    const [i, j] = await ready(begin, randint(-1000, 1000, [7, 45]), randint(1, 9, [7, 45]));
    const small = i.to({ dtype: "uint8" });
    await read([
      ...[
        i.add(j),
        i.mul(j),
        i.floorDivide(j),
        i.remainder(j),
        i.bitwiseXor(j),
        i.bitwiseLeftShift(j),
        i.bitwiseRightShift(j),
      ],
      ...[
        i.pow(j),
        i.sum(0),
        i.amax(1),
        i.argmax(1),
        i.lt(j),
        i.float(),
        small.add(small),
        small.sum(1),
        i.abs().cumsum(1),
      ],
    ]);
  },
  "random numbers": async (begin) => {
    begin([]);
    await read([rand([1001]), randn([77, 13]), randint(0, 1000, [99]), zeros([500]).add(0.3).bernoulli()]);
  },
  "views: transposed, padded, strided, joined": async (begin) => {
    const [x, y] = await ready(begin, randn([19, 23]), randn([19, 23]));
    const flipped = x.flip(0);
    await read([
      ...[x.t().exp().sum(1), x.t().mul(2), x.pad([1, 2, 3, 0]).add(1), flipped.mul(y), x.roll(3, 0).add(y)],
      ...[x.unfold(1, 5, 2).sum(-1), x.reshape(23, 19).add(y.t()), x.tril().matmul(y.t()), x.t().softmax(-1)],
    ]);
  },
  "gathers, scatters, sorts and scans": async (begin) => {
    const [x, ids, at] = await ready(begin, randn([31, 17]), randint(0, 31, [50]), randint(0, 17, [31, 9]));
    await read([
      ...[
        x.indexSelect(0, ids),
        x.gather(1, at),
        x.scatterAdd(1, at, x.narrow(1, 0, 9)),
        x.indexAdd(0, ids, x.indexSelect(0, ids)),
      ],
      ...[
        x.argsort(1),
        x.sort(0).values,
        x.cumsum(0),
        x.cumsum(1),
        x.cumprod(1),
        x.cummax(1).values,
        x.topk(3, { dim: 1 }).values,
      ],
    ]);
  },
  "long reductions": async (begin) => {
    const [x] = await ready(begin, randn([long ? 1000 : 130, 513]));
    await read([x.sum(), x.sum(0), x.sum(1), x.amax(0), x.mean(), x.std(0), x.norm(), x.t().sum(1), x.argmin(0)]);
  },
  "a kernel of one's own": async (begin) => {
    const [x] = await ready(begin, randn([13, 41]));
    await read([own([x], { by: 0.3 }), own([x.t()], { by: -1.5 })]);
  },
  "an index out of range": async (begin) => {
    const table = new nn.Parameter(randn([10, 8]));
    const [ids] = await ready(begin, tensor([3, 10, 1], { dtype: "int32" }), table);
    const optimizer = new optim.SGD([table], { lr: 1 });
    F.embedding(ids, table).sum().backward();
    await assert.rejects(async () => {
      await optimizer.step();
      await synchronize("cpu");
    }, /out of range/);
  },
};

/** How far from this machine's value a value may be: relative, and to the largest of the tensor. */
const tolerance: Readonly<Record<DType, number>> = {
  float32: 1e-5,
  float64: 1e-10,
  float16: 2e-3,
  bfloat16: 2e-2,
  int32: 0,
  uint32: 0,
  uint8: 0,
  bool: 0,
};

function values({ dtype, bytes }: Raw): ArrayLike<number> {
  const { array } = dtypes[dtype];
  const aligned = bytes.slice();
  const raw = new array(aligned.buffer, 0, bytes.length / dtypes[dtype].bytes);
  return decode(dtype, raw);
}

function close(got: Raw, expected: Raw, where: string): void {
  const [g, e] = [values(got), values(expected)];
  assert.equal(g.length, e.length, where);
  const largest = Array.prototype.reduce.call(
    e,
    (m, v) => (Number.isFinite(v) ? Math.max(m as number, Math.abs(v as number)) : m),
    0,
  ) as number;
  for (let i = 0; i < e.length; i++) {
    if (Object.is(g[i], e[i]) || g[i] === e[i]) continue;
    const limit = tolerance[expected.dtype] * largest;
    assert.ok(Math.abs(g[i] - e[i]) <= limit, `${where}, ${expected.dtype} element ${i}: ${g[i]}, here ${e[i]}`);
  }
}

test("what is recorded has kernels of every form, and every builtin", { skip }, () => {
  const { recordings } = recorder;
  const parts = recordings.flatMap((r) => [...r.parts.values()]);
  const kernels = parts.map((p) => p.texts.kernels).join("\n");
  for (const form of ["flat", "columns", "rows"]) assert.match(kernels, new RegExp(`^${form} \\d+ rows`, "m"));
  const met = new Set(parts.flatMap((p) => builtinsOf(encodeTable(p.table))));
  assert.deepEqual(
    builtins.filter((name) => !met.has(name)),
    ["fill", "pack_bf16", "gemm_bf16"],
    "fill is for poisoning alone, pairs of bfloat16 are for processors that no target here is",
  );
  assert.deepEqual([...new Set(recordings.map((r) => r.label))].sort(), Object.keys(bodies).sort());
});

for (const spec of all)
  test(`${spec.name}: the runtime and the kernels give what this machine gives`, {
    skip: skip || spec.missing,
  }, async (t) => {
    const target = targets.find((x) => x.name === spec.name) as Target;
    const { recordings } = recorder;
    const [one, ...others]: Result[][] = await target.run(recordings, long ? [1, 2, 7] : [1, 2]);
    t.diagnostic(`${recordings.length} programs, ${target.numKernels} kernels, ${target.shape.lanes} lanes`);
    if (!spec.runner) return t.diagnostic("compiled, not run: this processor lacks it");
    recordings.forEach((r, i) => {
      const got = one[i];
      assert.equal(got.error !== 0n, r.failed, `${r.label}: error word ${got.error}`);
      for (const other of others) {
        assert.equal(other[i].error !== 0n, r.failed, r.label);
        if (!r.failed) assert.deepEqual(other[i], got, `${r.label}: other bits at another number of threads`);
      }
      got.after.forEach((b, k) => {
        close(b, r.after[k], `${r.label}, state ${k}`);
      });
      if (!r.failed)
        got.outputs.forEach((b, k) => {
          close(b, r.outputs[k], `${r.label}, result ${k}`);
        });
    });
  });
