/**
 * Matrix products, float32, against numpy's OpenBLAS and PyTorch's MKL: squares, and the products of the GPT step. `count`
 * products with a common right side make a sample (one program of ours), so that what is timed is the products. All sides write
 * into results that are there (`out=` of the peers): what fresh memory costs is not a product's.
 */
import { asState, realize, type Tensor, tensor, zeros } from "../src/index.ts";
import { type Benchmark, race } from "./support/benchmark.ts";
import { uniform } from "./support/numbers.ts";
import { ours, python } from "./support/sides.ts";

/** n: as stored; t: stored transposed. */
type Mode = "nn" | "nt" | "tn";
const shapes: readonly (readonly [name: string, mode: Mode, M: number, N: number, K: number, count: number])[] = [
  ["256³", "nn", 256, 256, 256, 32],
  ["512³", "nn", 512, 512, 512, 8],
  ["1024³", "nn", 1024, 1024, 1024, 2],
  ["2048³", "nn", 2048, 2048, 2048, 1],
  ["qkv forward", "nt", 2048, 1152, 384, 2],
  ["projection forward", "nt", 2048, 384, 384, 4],
  ["up forward", "nt", 2048, 1536, 384, 2],
  ["down forward", "nt", 2048, 384, 1536, 2],
  ["head forward", "nt", 2048, 65, 384, 8],
  ["qkv input gradient", "nn", 2048, 384, 1152, 2],
  ["up input gradient", "nn", 2048, 384, 1536, 2],
  ["down input gradient", "nn", 2048, 1536, 384, 2],
  ["head input gradient", "nn", 2048, 384, 65, 8],
  ["qkv weight gradient", "tn", 1152, 384, 2048, 2],
  ["projection weight gradient", "tn", 384, 384, 2048, 4],
  ["up weight gradient", "tn", 1536, 384, 2048, 2],
  ["head weight gradient", "tn", 65, 384, 2048, 8],
];

const flop = (line: number): number => 2 * shapes[line][2] * shapes[line][3] * shapes[line][4];

function products(index: number): () => Tensor[] {
  const [, mode, M, N, K, count] = shapes[index];
  const lefts = Array.from({ length: count }, (_, i) =>
    tensor(uniform(100 + i, M * K), { shape: mode === "tn" ? [K, M] : [M, K] }),
  );
  const right = tensor(uniform(99, K * N), { shape: mode === "nt" ? [N, K] : [K, N] });
  const results = lefts.map(() => asState(zeros([M, N])));
  return () =>
    lefts.map((left, i) =>
      results[i].copy_(
        (mode === "tn" ? left.transpose(0, 1) : left).matmul(mode === "nt" ? right.transpose(0, 1) : right),
      ),
    );
}

export const benchmark: Benchmark = {
  name: "gemm",
  title: "Matrix products, float32",
  ours: async () => {
    const made = shapes.map((_, i) => products(i));
    return {
      title: "Nabla, cpu",
      check: async () => {
        const values: number[] = [];
        for (const [i, run] of made.entries()) {
          const c = run();
          await realize(...c);
          const last = (await (c.at(-1) as Tensor).data()) as Float32Array;
          values.push(last.reduce((sum, x) => sum + Math.abs(x), 0) / (shapes[i][2] * shapes[i][3]));
          values.push(last[0], last[last.length - 1]);
        }
        return values;
      },
      lines: made.map((run, i) => ({ name: shapes[i][0], per: shapes[i][5], run: () => realize(...run()) })),
    };
  },
  run: async (options) => {
    const list = shapes.map(([, ...shape]) => shape.join(":")).join(",");
    return race(options, {
      sides: [ours("gemm"), python("numpy", "gemm.py", "numpy", list), python("torch", "gemm.py", "torch", list)],
      lines: shapes.map(([name, , M, N, K]) => (name.includes("³") ? name : `${name} ${M}×${N}×${K}`)),
      unit: "GFLOP/s",
      convert: (ms, line) => flop(line) / ms / 1e6,
      seconds: 0.2,
      tolerance: 1e-3,
      targets: { numpy: { atLeast: 0.95 } },
    });
  },
};
