/**
 * Random loops against the same steps written out on the reference backend: on every backend present, fused and with a kernel
 * an operation, with poisoned memory, with the same bits at 1, 2 and 7 threads. Failures print the seed.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { gradientsOf } from "../../src/autograd/index.ts";
import type { Backend } from "../../src/backends/backend.ts";
import { openCpuBackend } from "../../src/backends/cpu/index.ts";
import { NativeRuntime } from "../../src/backends/cpu/native.ts";
import { findCompiler } from "../../src/backends/cpu/toolchain.ts";
import { referenceBackend } from "../../src/backends/reference/index.ts";
import { openWasmBackend } from "../../src/backends/wasm/index.ts";
import { loop, unrolled } from "../../src/graph/loop.ts";
import type { Node } from "../../src/graph/node.ts";
import * as o from "../../src/graph/ops.ts";
import { backendsUnderTest, isBrief } from "../support/backends.ts";
import { compileNodes, evaluate, nodeFrom } from "../support/evaluate.ts";
import { randomNumbers, sample } from "../support/gradients.ts";

interface Made {
  /** All results of the loop and the gradients through it. */
  readonly results: readonly Node[];
  /** The loop itself, where its results can be written out. */
  readonly loops: readonly Node[];
}

/** A loop with random carries, sequences, weights and steps, and its gradients; the same for the same seed on every backend. */
function randomLoop(backend: Backend, seed: number): Made {
  const next = randomNumbers(seed);
  const pick = (n: number): number => Math.floor(next() * n);
  const [rows, width, time] = [1 + pick(9), 1 + pick(20), 2 + pick(5)];
  const leaf = (shape: readonly number[], k: number): Node => {
    const node = nodeFrom(backend, sample(shape, -0.7, 0.7, seed + k).values, shape, "float32");
    node.requiresGrad = true;
    return node;
  };
  const carries = Array.from({ length: 1 + pick(3) }, (_, i) => leaf([rows, width], i));
  const sequences = Array.from({ length: pick(3) }, (_, i) => leaf([time, rows, width], 10 + i));
  const weight = leaf([width, width], 20);
  const bias = leaf([width], 21);
  const plans = Array.from({ length: 40 }, () => [pick(9), pick(99), pick(99)] as const);
  const numOutputs = pick(3);
  const ends = Array.from({ length: carries.length + numOutputs }, () => pick(99));
  const { reverse, counted } = { reverse: pick(2) === 1, counted: pick(2) === 1 };
  const shape = [rows, width];
  const inner = (x: Node, y: Node): Node =>
    loop(([a], [e]) => ({ carries: [o.sin(o.add(o.mul(a, e), y))], outputs: [] }), {
      carries: [x],
      sequences: [o.reshape(o.concat([x, y, x], 0), [3, ...shape])],
      count: 3,
    }).carries[0];
  const body = (state: readonly Node[], elements: readonly Node[]) => {
    const number = counted ? state[state.length - 1] : null;
    const pool = [...state.slice(0, carries.length), ...elements];
    if (number) pool.push(o.expandTo(o.mul(o.cast(number, "float32"), 0.1), shape));
    for (const [kind, i, j] of plans.slice(0, 4 + (seed % 6))) {
      const [x, y] = [pool[i % pool.length], pool[j % pool.length]];
      const made = [
        () => o.tanh(o.add(x, y)),
        () => o.mul(x, o.sin(y)),
        () => o.tanh(o.add(o.matmul(x, weight), bias)),
        () => o.tanh(o.matmul(x, o.permute(weight, [1, 0]))),
        () => o.mul(o.expandTo(o.mean(x, 1, { keepdim: true }), shape), y),
        () => o.expandTo(o.mean(o.mul(x, y), 0, { keepdim: true }), shape),
        () => o.concat([o.narrow(x, 1, width >> 1, width - (width >> 1)), o.narrow(y, 1, 0, width >> 1)], 1),
        () => o.where(o.lt(x, y), x, o.mul(y, 0.5)),
        () => inner(x, y),
      ][kind]();
      pool.push(made);
    }
    const end = ends.map((k) => pool[pool.length - 1 - (k % pool.length)]);
    return {
      carries: [...end.slice(0, carries.length), ...(number ? [o.add(number, 1)] : [])],
      outputs: end.slice(carries.length),
    };
  };
  const first = counted ? [...carries, o.constant(3, "int32")] : carries;
  const made = loop(body, { carries: first, sequences, count: time, reverse });
  const values = [...made.carries, ...made.outputs];
  const floats = values.filter((x) => x.dtype === "float32" && x.requiresGrad);
  const inputs = [...carries, ...sequences, weight, bias];
  const gradients = floats.length
    ? gradientsOf(
        floats,
        floats.map((x) => o.mul(o.onesLike(x), 0.5)),
        inputs,
        { allowUnused: true },
      )
    : [];
  return { results: [...values, ...gradients.filter((g) => g !== null)], loops: [made.carries[0]] };
}

const close = (got: ArrayLike<number>, expected: ArrayLike<number>, what: string): void => {
  let largest = 1;
  for (let i = 0; i < expected.length; i++) largest = Math.max(largest, Math.abs(expected[i]));
  for (let i = 0; i < expected.length; i++)
    assert.ok(
      Math.abs(got[i] - expected[i]) <= 2e-5 * largest,
      `${what}, element ${i}: got ${got[i]}, expected ${expected[i]}`,
    );
};

const first = Number(process.env["NABLA_TEST_SEED"] ?? 1);
const reference = referenceBackend();

test("a loop is its steps, one after the other", async () => {
  for (let seed = first; seed < first + 60; seed++) {
    const { loops } = randomLoop(reference, seed);
    for (const node of loops) {
      const outputs = o.outputs(node);
      const written = unrolled(node);
      const got = await evaluate(reference, [...outputs, ...written]);
      outputs.forEach((_, i) => {
        assert.deepEqual(got[i], got[outputs.length + i], `seed ${seed}, output ${i}`);
      });
    }
  }
});

for (const backend of (await backendsUnderTest()).filter(({ name }) => name !== "reference"))
  test(`random loops and their gradients on ${backend.name} agree with the reference`, async () => {
    const count = isBrief(backend) ? 1 : 12;
    for (let seed = first; seed < first + count; seed++) {
      const expected = await evaluate(reference, randomLoop(reference, seed).results);
      const got = await evaluate(backend, randomLoop(backend, seed).results);
      for (const [i, e] of expected.entries()) close(got[i], e, `seed ${seed}, result ${i}`);
    }
  });

/** `count` steps over a sequence: h = tanh(h + e) and h + e. */
function longLoop(backend: Backend, dtype: "float32" | "uint8", count: number): readonly Node[] {
  const elements = Float32Array.from({ length: count }, (_, i) => (dtype === "uint8" ? i % 2 : Math.sin(i)));
  const { carries, outputs } = loop(
    ([h], [e]) => {
      const sum = o.add(h, o.cast(e, "float32"));
      return { carries: [o.tanh(sum)], outputs: [sum] };
    },
    {
      carries: [nodeFrom(backend, [0], [], "float32")],
      sequences: [nodeFrom(backend, elements, [count], dtype)],
      count,
    },
  );
  return [...carries, ...outputs];
}

for (const backend of (await backendsUnderTest()).filter(({ name }) => name !== "reference")) {
  test(`a loop of 5,000 steps on ${backend.name}`, async () => {
    const expected = await evaluate(reference, longLoop(reference, "float32", 5000));
    const got = await evaluate(backend, longLoop(backend, "float32", 5000));
    for (const [i, e] of expected.entries()) close(got[i], e, `result ${i}`);
  });

  const written = backend.name.endsWith("webgpu");
  test(`elements that are parts of words on ${backend.name}: ${written ? "written out, but not too often" : "as others"}`, async () => {
    const expected = await evaluate(reference, longLoop(reference, "uint8", 50));
    const got = await evaluate(backend, longLoop(backend, "uint8", 50));
    for (const [i, e] of expected.entries()) close(got[i], e, `result ${i}`);
    if (!written) return;
    await assert.rejects(evaluate(backend, longLoop(backend, "uint8", 5000)), {
      name: "BackendError",
      message: /parts of a 32-bit word, and 5000 steps are too many to write out \(\d+ operations, at most 8192\)/,
    });
  });
}

/** How a backend with loops of its own is opened, and how it is brought to so many threads. */
interface Looping {
  readonly name: string;
  readonly skip: string | false;
  readonly open: (options?: { fuse?: boolean }) => Promise<Backend>;
  readonly withThreads: (n: number) => Promise<Backend>;
}

const looping: readonly Looping[] = [
  {
    name: "cpu",
    skip: findCompiler() ? false : "no C compiler here",
    open: openCpuBackend,
    withThreads: async (n) => {
      (await NativeRuntime.open()).setThreads(n);
      return openCpuBackend();
    },
  },
  { name: "wasm", skip: false, open: openWasmBackend, withThreads: (threads) => openWasmBackend({ threads }) },
];

/** h = tanh(h·w + x), step by step, as states and as gradients: large enough that all threads take part. */
function recurrence(backend: Backend, [time, rows, width]: readonly [number, number, number]): readonly Node[] {
  const leaf = (shape: readonly number[], seed: number): Node => {
    const node = nodeFrom(backend, sample(shape, -0.3, 0.3, seed).values, shape, "float32");
    node.requiresGrad = true;
    return node;
  };
  const [x, w, h] = [leaf([time, rows, width], 1), leaf([width, width], 2), leaf([rows, width], 3)];
  const made = loop(
    ([a], [e]) => {
      const next = o.tanh(o.add(o.matmul(a, w), e));
      return { carries: [next], outputs: [next] };
    },
    { carries: [h], sequences: [x], count: time },
  );
  const loss = o.sum(o.mul(made.outputs[0], made.outputs[0]));
  return [made.outputs[0], made.carries[0], loss, ...(gradientsOf([loss], [null], [x, w, h]) as Node[])];
}

const wanted = (process.env["NABLA_TEST_BACKENDS"] ?? "cpu,wasm").split(",");
for (const { name, skip, open, withThreads } of looping.filter((l) => wanted.includes(l.name)))
  describe(`loops on ${name}`, { skip }, () => {
    test("a kernel an operation gives the same, and so does poisoned memory", async () => {
      const plain = await open({ fuse: false });
      const poisoned = await open();
      for (let seed = first + 100; seed < first + 108; seed++) {
        const expected = await evaluate(reference, randomLoop(reference, seed).results);
        const unfused = await evaluate(plain, randomLoop(plain, seed).results);
        const before = process.env["NABLA_POISON"];
        process.env["NABLA_POISON"] = "1";
        const clean = await evaluate(poisoned, randomLoop(poisoned, seed).results);
        if (before === undefined) delete process.env["NABLA_POISON"];
        else process.env["NABLA_POISON"] = before;
        for (const [i, e] of expected.entries()) {
          close(unfused[i], e, `unfused, seed ${seed}, result ${i}`);
          close(clean[i], e, `poisoned, seed ${seed}, result ${i}`);
        }
      }
    });

    test("the same bits at 1, 2, 3 and 7 threads", async () => {
      const made: Readonly<Record<string, (b: Backend) => readonly Node[]>> = {
        "a large one": (b) => recurrence(b, [12, 64, 128]),
      };
      for (let seed = first + 200; seed < first + 206; seed++)
        Object.assign(made, { [`seed ${seed}`]: (b: Backend) => randomLoop(b, seed).results });
      const runtime = name === "cpu" ? await NativeRuntime.open() : null;
      const threads = runtime?.threads ?? 0;
      const before = new Map<string, unknown>();
      for (const n of [1, 2, 3, 7]) {
        const backend = await withThreads(n);
        for (const [what, results] of Object.entries(made)) {
          const { run } = await compileNodes(backend, results(backend));
          await run();
          const now = await run();
          if (before.has(what)) assert.deepEqual(now, before.get(what), `${what} at ${n} threads`);
          before.set(what, now);
        }
      }
      runtime?.setThreads(threads);
    });

    test("a body is assembled once: kernels do not grow with the number of steps", async () => {
      const backend = await open();
      const kernels = async (time: number): Promise<number> => {
        const { program } = await compileNodes(backend, recurrence(backend, [time, 4, 8]));
        return program.describe("kernels").split("\n\n").length;
      };
      assert.equal(await kernels(500), await kernels(3));
    });

    test("a sequence of any length", async () => {
      const backend = await open();
      const time = 20_000;
      const x = sample([time]).values;
      const { carries } = loop(([a], [e]) => ({ carries: [o.tanh(o.add(a, e))], outputs: [] }), {
        carries: [nodeFrom(backend, [0], [], "float32")],
        sequences: [nodeFrom(backend, x, [time], "float32")],
        count: time,
      });
      const [got] = await evaluate(backend, carries);
      let h = 0;
      for (const e of x) h = Math.tanh(h + Math.fround(e));
      assert.ok(Math.abs(got[0] - h) < 1e-4, `${got[0]}, expected ${h}`);
    });
  });
