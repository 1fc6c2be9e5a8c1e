/** A square float32 product as the wasm and webgpu benchmarks and their peers measure it: operands made here, the result read. */
import { tensor } from "../../src/index.ts";
import type { Served } from "./protocol.ts";

export async function serveProduct(size: number): Promise<Served> {
  const numbers = (step: number) =>
    tensor(
      Float32Array.from({ length: size * size }, (_, i) => ((i * step) % 1009) / 1009 - 0.5),
      { shape: [size, size] },
    );
  const [a, b] = [numbers(7), numbers(11)];
  const product = async () => (await a.matmul(b).data()) as Float32Array;
  return {
    title: `Nabla, ${a.device}`,
    check: async () => {
      const c = await product();
      return [c[0], c[c.length - 1], c.reduce((sum, x) => sum + Math.abs(x), 0)];
    },
    lines: [{ name: "product", per: 1, run: product }],
  };
}
