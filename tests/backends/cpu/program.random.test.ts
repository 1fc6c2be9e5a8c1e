/**
 * Random programs (program.generator.ts): fused kernels, one kernel a node, and the reference backend give the same values
 * and leave the same states, run after run. NABLA_LONG=1 runs more of them,
 * NABLA_SEED=n starts from another seed; a failure prints its seed and the program.
 */
import assert from "node:assert/strict";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { type DType, decode, isFloat, type TypedArray } from "../../../src/core/dtype.ts";
import { compileNodes } from "../../support/evaluate.ts";
import { firstDifference } from "../../support/fixtures.ts";
import { type Options, randomProgram, showProgram } from "./program.generator.ts";
import { describe, openCpuBackend, test } from "./with-compiler.ts";

const long = process.env["NABLA_LONG"] === "1";
const first = Number(process.env["NABLA_SEED"] ?? 1);
const count = long ? 300 : 25;

interface Result {
  readonly what: string;
  readonly dtype: DType;
  readonly values: TypedArray;
}

/** Roots of two runs (the second sees the states that the first has written), then the states. */
async function resultsOf(backend: Backend, seed: number, options: Options): Promise<Result[]> {
  const { roots, assigns, states } = randomProgram(backend, seed, options);
  const { run } = await compileNodes(backend, roots, assigns);
  const out: Result[] = [];
  for (const n of [1, 2]) {
    const values = await run();
    roots.forEach(({ dtype }, i) => {
      out.push({ what: `root ${i} of run ${n}`, dtype, values: decode(dtype, values[i]) });
    });
  }
  for (const [i, { dtype, storage }] of states.entries())
    if (storage) {
      const raw = await backend.read(storage.memory, dtype, storage.length);
      out.push({ what: `state ${i}`, dtype, values: decode(dtype, raw) });
    }
  return out;
}

/** Of the largest number in a result, for what is summed in another order; integers are exact. */
const allowed: Readonly<Partial<Record<DType, number>>> = {
  float64: 1e-9,
  float32: 1e-4,
  bfloat16: 2e-2,
  float16: 2e-3,
};

function difference(got: readonly Result[], expected: readonly Result[]): string | null {
  for (const [i, { what, dtype, values }] of expected.entries()) {
    let largest = 1;
    for (const x of values) if (Number.isFinite(x)) largest = Math.max(largest, Math.abs(x));
    const atol = isFloat(dtype) ? (allowed[dtype] as number) * largest : 0;
    const found = firstDifference(got[i].values, values, { rtol: 0, atol });
    if (found) return `${what} (${dtype}): ${found}`;
  }
  return null;
}

/** What is drawn, and which part of `count` of it. */
const kinds: readonly { readonly kind: Options; readonly share: number }[] = [
  { kind: { dtype: "float32", size: "small" }, share: 1 },
  { kind: { dtype: "float64", size: "small" }, share: 2 },
  { kind: { dtype: "float32", size: "large" }, share: 4 },
  { kind: { dtype: "int32", size: "small" }, share: 8 },
  { kind: { dtype: "bfloat16", size: "small" }, share: 8 },
  { kind: { dtype: "float16", size: "small" }, share: 8 },
];

const reference = referenceBackend();
const backends = [
  { name: "fused kernels", backend: await openCpuBackend({ fuse: true }) },
  { name: "a kernel a node", backend: await openCpuBackend({ fuse: false }) },
];

for (const { name, backend } of backends)
  describe(`random programs with ${name}`, () => {
    for (const { kind, share } of kinds) {
      const many = Math.ceil(count / share);
      test(`${many} of ${kind.size} sizes in ${kind.dtype}, from seed ${first}`, async () => {
        for (let seed = first; seed < first + many; seed++) {
          const options = { ...kind, empty: seed % 4 === 0 };
          const what = (): string => `seed ${seed}\n${showProgram(randomProgram(backend, seed, options))}`;
          const expected = await resultsOf(reference, seed, options);
          const got = await resultsOf(backend, seed, options).catch((cause: Error) => {
            throw new Error(`${cause.message}\n${what()}`, { cause });
          });
          const found = difference(got, expected);
          if (found) assert.fail(`${found}\n${what()}`);
        }
      });
    }
  });
