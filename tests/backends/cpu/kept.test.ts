/**
 * Programs kept on disk: found again by the next process, made anew where the file is damaged or belongs to something else,
 * and never taken for a graph that differs in anything. The compiler that was found is remembered in the same folder.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";
import { defineOperation } from "../../../src/autograd/index.ts";
import type { Backend } from "../../../src/backends/backend.ts";
import { Assembler, type Parts } from "../../../src/backends/cpu/assemble.ts";
import { openCpuBackend } from "../../../src/backends/cpu/index.ts";
import { keptProgram, programKey } from "../../../src/backends/cpu/kept.ts";
import { NativeRuntime } from "../../../src/backends/cpu/native.ts";
import { nativeTarget } from "../../../src/backends/cpu/target.ts";
import { findCompiler, resetToolchain } from "../../../src/backends/cpu/toolchain.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { ownCache } from "../../support/cpu.ts";
import { type Assign, captureOf, nodeFrom } from "../../support/evaluate.ts";
import { typescript } from "../../support/typescript.ts";

const skip = findCompiler() ? false : "no C compiler here";
const folder = skip ? "" : await ownCache();
const inherited = process.env["NABLA_CACHE_DIR"];
const kernels = join(folder, "kernels");
let runtime: NativeRuntime;
let backend: Backend;

before(async () => {
  process.env["NABLA_CACHE_DIR"] = folder;
  resetToolchain();
  if (skip) return;
  runtime = await NativeRuntime.open();
  backend = await openCpuBackend();
});
after(() => {
  if (!skip) rmSync(folder, { recursive: true });
  if (inherited === undefined) delete process.env["NABLA_CACHE_DIR"];
  else process.env["NABLA_CACHE_DIR"] = inherited;
  resetToolchain();
});

const leafOf = (rows: number, dtype: "float32" | "float64" = "float32"): Node =>
  nodeFrom(backend, new Float64Array(rows * 6), [rows, 6], dtype);

/** The key of what these roots and state writes become, and how they become it. */
function prepare(roots: readonly Node[], assigns: readonly Assign[] = [], settings = "", features = runtime.features) {
  const capture = captureOf(roots, assigns);
  const assembler = new Assembler(nativeTarget(runtime), capture, true);
  const key = programKey({ features, shape: runtime.shape }, capture, assembler.lowered, settings);
  return { key, make: () => assembler.run() };
}

/** With an index to check, a state, a product that carries a kernel, and numbers that JSON can't hold. */
function example() {
  const x = leafOf(40);
  const at = nodeFrom(backend, [4, 0, 2], [3], "int32");
  const y = o.where(o.lt(x, 1), o.full([40, 6], -0, "float32"), o.full([40, 6], Number.NaN, "float32"));
  const product = o.tanh(o.matmul(y, o.transpose(x, 0, 1)));
  return prepare([o.take(product, 0, at), product], [{ target: x, value: o.add(x, y) }]);
}

const never = (): Parts => {
  throw new Error("the program should have been kept");
};
const programs = (): string[] => readdirSync(kernels).filter((f) => f.startsWith("program-"));

test("a kept program is what was made, and is not made again", { skip }, () => {
  const { key, make } = example();
  const made = keptProgram(key, make, 0);
  assert.ok(made.failures.length > 0 && made.sources.length > 0 && made.table.commands.length > 1);
  assert.deepEqual(keptProgram(key, never, 0), made);
  assert.deepEqual(keptProgram(example().key, never, 0), made, "an equal graph recorded again");
});

test("what is made quickly is not kept", { skip }, () => {
  const { key, make } = prepare([o.exp(leafOf(3))]);
  const before = programs();
  keptProgram(key, make, Number.POSITIVE_INFINITY);
  assert.deepEqual(programs(), before);
});

test("a damaged or foreign file is made anew", { skip }, () => {
  const { key, make } = prepare([o.sum(o.exp(leafOf(7)), 0)]);
  const before = new Set(programs());
  const made = keptProgram(key, make, 0);
  const [name] = programs().filter((f) => !before.has(f));
  const path = join(kernels, name);
  const whole = readFileSync(path);
  const damaged: [string, Buffer][] = [
    ["empty", Buffer.alloc(0)],
    ["shorter than its hash", whole.subarray(0, 10)],
    ["cut short", whole.subarray(0, whole.length - 1)],
    ["longer", Buffer.concat([whole, Buffer.from([0])])],
  ];
  for (const at of [0, 31, 32, 40, whole.length >> 1, whole.length - 1]) {
    const flipped = Buffer.from(whole);
    flipped[at] ^= 4;
    damaged.push([`bit at byte ${at}`, flipped]);
  }
  // the file of another program in this one's place, as if their names collided
  damaged.push(["another's", readFileSync(join(kernels, [...before][0] ?? name))]);
  assert.ok(before.size > 0);
  for (const [what, data] of damaged) {
    writeFileSync(path, data);
    let remade = 0;
    const fresh = prepare([o.sum(o.exp(leafOf(7)), 0)]);
    const count = (): Parts => {
      remade++;
      return fresh.make();
    };
    assert.deepEqual(keptProgram(key, count, 0), made, what);
    assert.equal(remade, 1, what);
    assert.deepEqual(readFileSync(path), whole, `${what}: not repaired`);
  }
});

test("keys differ wherever programs do", { skip }, () => {
  const x = leafOf(4);
  const fill = (v: number): Node => o.mul(x, o.full([4, 6], v, "float32"));
  const texts = [
    ...[0, -0, 1, Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY].map((v) => prepare([fill(v)]).key),
    prepare([o.exp(x)]).key,
    prepare([o.tanh(x)]).key,
    prepare([o.exp(leafOf(5))]).key,
    prepare([o.exp(leafOf(4, "float64"))]).key,
    prepare([o.exp(x), o.tanh(x)]).key,
    prepare([o.tanh(x), o.exp(x)]).key,
    prepare([o.sum(x, 0)]).key,
    prepare([o.sum(x, 1)]).key,
    prepare([o.exp(x)], [{ target: x, value: o.tanh(x) }]).key,
    prepare([o.exp(x)], [{ target: leafOf(4), value: o.tanh(x) }]).key,
    prepare([o.exp(x)], [], "other").key,
    prepare([o.exp(x)], [], "", 0).key,
    prepare([o.mul(x, o.scalar(2, "float32"))]).key,
  ];
  assert.ok(texts.every((t) => typeof t === "string"));
  assert.equal(new Set(texts).size, texts.length);
  assert.equal(
    prepare([o.mul(x, o.scalar(3, "float32"))]).key,
    prepare([o.mul(x, o.scalar(2, "float32"))]).key,
    "a runtime number is no part of it",
  );
});

test("a program with a kernel of a user's own is not kept", { skip }, () => {
  const twice = defineOperation({
    name: "kept.twice",
    infer: ([x]) => x,
    decompose: ([x]) => [o.add(x, x)],
    kernels: {
      cpu: ([x]) => ({ rows: x.shape[0], body: "for (nb_i64 i = r0 * 6; i < r1 * 6; i++) out0[i] = 2 * in0[i];" }),
    },
  });
  assert.equal(prepare([twice([leafOf(4)])[0]]).key, null);
});

test("a second process finds the programs of the first and computes the same", { skip }, async () => {
  const fresh = await ownCache();
  try {
    const child = fileURLToPath(new URL("./fixtures/kept-child.ts", import.meta.url));
    const run = (): string => {
      const { stdout, stderr, status } = spawnSync(process.execPath, [...typescript, child], {
        encoding: "utf8",
        env: { ...process.env, NABLA_CACHE_DIR: fresh },
      });
      assert.equal(status, 0, stderr);
      return stdout;
    };
    const kept = (): string[] => readdirSync(join(fresh, "kernels")).filter((f) => f.startsWith("program-"));
    const first = run();
    assert.equal(first.trim().split("\n").length, 3);
    assert.ok(kept().length > 0, "the step is worth keeping");
    const before = kept().sort();
    assert.equal(run(), first);
    assert.ok(before.every((f) => kept().includes(f)));
  } finally {
    rmSync(fresh, { recursive: true, force: true });
  }
});

test("a compiler is asked once for as long as it is the same file", { skip }, () => {
  const place = join(folder, "compilers");
  mkdirSync(place);
  const log = join(place, "log");
  const command = join(place, "cc");
  const write = (note: string): void =>
    writeFileSync(command, `#!/bin/sh\n# ${note}\necho "$1" >> ${log}\nexec cc "$@"\n`, { mode: 0o755 });
  const asked = (): number => {
    try {
      return readFileSync(log, "utf8").trim().split("\n").length;
    } catch {
      return 0;
    }
  };
  const before = process.env["NABLA_CC"];
  process.env["NABLA_CC"] = command;
  try {
    const find = () => {
      resetToolchain();
      return findCompiler();
    };
    write("one");
    const first = find();
    assert.deepEqual(first?.command, [command]);
    const once = asked();
    assert.equal(once, 2, "its version, and a line to compile");
    assert.deepEqual(find(), first);
    assert.equal(asked(), once);
    write("another");
    assert.deepEqual(find(), first);
    assert.equal(asked(), 2 * once);
    rmSync(command);
    assert.equal(find(), null, "a compiler that is gone is not found");
  } finally {
    if (before === undefined) delete process.env["NABLA_CC"];
    else process.env["NABLA_CC"] = before;
    resetToolchain();
  }
});
