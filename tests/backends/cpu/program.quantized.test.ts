/**
 * Products with weights in 4 and 8 bits on `cpu`: their codes are read while panels are packed, so that the plan holds no floating weight;
 * the results are those of the product with the weight that the codes stand for, at every thread count.
 */
import assert from "node:assert/strict";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { dequantizeInt8, dequantizeNF4, nf4Code, quantizeInt8, quantizeNF4 } from "../../../src/finetune/index.ts";
import { dequantize } from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, evaluate, nodeFrom } from "../../support/evaluate.ts";
import { assertClose } from "../../support/fixtures.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const backend = await openCpuBackend({ fuse: true });
const formats = ["nf4", "int8"] as const;
type Format = (typeof formats)[number];

const wave = (n: number): Float32Array => Float32Array.from({ length: n }, (_, i) => Math.sin(i * 12.9898));
const pairs = Float32Array.from({ length: 512 }, (_, i) => nf4Code[i % 2 === 0 ? i >> 5 : (i >> 1) & 15]);

/** A weight [rows, columns]: its node, and the floats that it stands for. */
function weight(format: Format, rows: number, columns: number, b = backend): { node: Node; floats: Float32Array } {
  const values = wave(rows * columns);
  const node = (codes: Uint8Array, scales: Float32Array): Node =>
    dequantize(
      nodeFrom(b, codes, [codes.length], "uint8"),
      nodeFrom(b, scales, [scales.length], "float32"),
      format === "nf4" ? nodeFrom(b, pairs, [256, 2], "float32") : null,
      { format, rows, columns },
    );
  if (format === "int8") {
    const made = quantizeInt8(values, rows, columns);
    return { node: node(made.codes, made.absmax), floats: dequantizeInt8(made) };
  }
  const made = quantizeNF4(values);
  assert.ok(made.scales.kind === "float32");
  return { node: node(made.packed, made.scales.absmax), floats: dequantizeNF4(made) };
}

for (const format of formats)
  describe(`a weight in ${format}`, () => {
    // rows of x, and of the weight [outputs, inputs]: few rows, parts of panels, blocks that straddle rows, several blocks of K, several tiles
    for (const [M, outputs, inputs] of [
      [1, 70, 130],
      [5, 33, 7],
      [8, 129, 64],
      [9, 31, 33],
      [37, 333, 1000],
      [130, 77, 100],
      [600, 200, 600],
    ] as const)
      test(`products of ${M} rows with it and with its transpose, ${outputs} by ${inputs}`, async () => {
        const runtime = await NativeRuntime.open();
        const threads = runtime.threads;
        const reference = referenceBackend();
        const both = (b: typeof backend, w: Node): Node[] => {
          const [x, dy] = [nodeFrom(b, wave(M * inputs), [M, inputs], "float32"), wave(M * outputs)];
          return [o.matmul(x, o.transpose(w, 0, 1)), o.matmul(nodeFrom(b, dy, [M, outputs], "float32"), w)];
        };
        const { floats } = weight(format, outputs, inputs);
        const expected = await evaluate(
          reference,
          both(reference, nodeFrom(reference, floats, [outputs, inputs], "float32")),
        );
        const seen: unknown[] = [];
        try {
          for (const n of [1, 2, 7]) {
            runtime.setThreads(n);
            const got = await evaluate(backend, both(backend, weight(format, outputs, inputs).node));
            got.forEach((y, i) => {
              assertClose(`product ${i}`, y, expected[i], { rtol: 1e-4, atol: 2e-4 });
            });
            seen.push(got);
          }
        } finally {
          runtime.setThreads(threads);
        }
        assert.deepEqual(seen[1], seen[0]);
        assert.deepEqual(seen[2], seen[0]);
      });

    test("its floats are in no plan of products with it, forwards and backwards", async () => {
      const { node } = weight(format, 512, 768);
      const x = nodeFrom(backend, wave(64 * 768), [64, 768], "float32");
      const y = o.matmul(x, o.transpose(node, 0, 1));
      const { program } = await compileNodes(backend, [o.matmul(o.add(y, 1), node)], []);
      const text = program.describe("memory");
      assert.equal(text.match(/contract %\d+ of codes/g)?.length, 2, text);
      assert.doesNotMatch(text, /dequantize|pack/);
      assert.ok(
        program.stats.arenaBytes <= 2 * 4 * 64 * 512,
        `${program.stats.arenaBytes} bytes of temporaries\n${text}`,
      );
    });

    test("whoever else reads it gets its floats, whether or not a product takes the codes", async () => {
      const { node, floats } = weight(format, 40, 96);
      const x = nodeFrom(backend, wave(16 * 96), [16, 96], "float32");
      const roots = [
        node,
        o.sum(node, 1),
        o.matmul(x, o.transpose(node, 0, 1)),
        o.matmul(x, o.narrow(o.transpose(node, 0, 1), 1, 3, 20)),
      ];
      const [whole, sums, product, part] = await evaluate(backend, roots);
      assertClose("floats", whole, floats, { rtol: 1e-6, atol: 0 });
      const rows = Float64Array.from({ length: 40 }, (_, r) =>
        floats.subarray(r * 96, r * 96 + 96).reduce((a, b) => a + b, 0),
      );
      assertClose("sums", sums, rows, { rtol: 1e-4, atol: 1e-5 });
      for (let m = 0; m < 16; m++)
        for (let n = 0; n < 20; n++)
          assertClose("part", [part[m * 20 + n]], [product[m * 40 + n + 3]], { rtol: 1e-4, atol: 1e-4 });
    });
  });
