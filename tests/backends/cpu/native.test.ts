/**
 * The native runtime's promises: programs run their phases in order at any number of threads, failures stop state from
 * being written, the cache survives damage, and a compiler's refusal is readable. The builtin kernels have tests of their own.
 */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, statSync, writeFileSync } from "node:fs";
import { availableParallelism } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { lanesPrelude } from "../../../src/backends/cpu/lanes.ts";
import { builtins, kernelPrelude, NativeRuntime, ProgramBuilder } from "../../../src/backends/cpu/native.ts";
import { buildAhead } from "../../../src/backends/cpu/together.ts";
import {
  CompilerError,
  cacheFolder,
  cpuFeatures,
  findCompiler,
  resetToolchain,
} from "../../../src/backends/cpu/toolchain.ts";
import { ownCache } from "../../support/cpu.ts";
import { typescript } from "../../support/typescript.ts";

const skip = findCompiler() ? false : "no C compiler here";
const folder = skip ? "" : await ownCache();
const inherited = process.env["NABLA_CACHE_DIR"];
let runtime: NativeRuntime;
let kernels: Record<string, number>;

const unit = (symbol: string, body: string) => ({
  symbol,
  source: `${kernelPrelude()}\nvoid ${symbol}(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid) {\n${body}\n}\n`,
});
const units = [
  unit("add_scalar", "float *x = (float *)c->b[0]; for (nb_i64 i = r0; i < r1; i++) x[i] += (float)c->s[c->si[0]];"),
  unit("mark", "int *x = (int *)c->b[0]; for (nb_i64 i = r0; i < r1; i++) x[i] = (int)c->p[0] + tid * 0;"),
  unit("fail_at", "for (nb_i64 i = r0; i < r1; i++) if (i == c->p[1]) nabla_fail(c->run, c->p[0], i);"),
  unit(
    "scratch",
    "float *s = (float *)c->run->scratch[tid]; int *x = (int *)c->b[0]; for (nb_i64 i = 0; i < c->p[0]; i++) s[i] = tid; for (nb_i64 i = r0; i < r1; i++) x[i] = (int)s[c->p[0] - 1] == tid;",
  ),
  unit("tiny", "volatile float *x = (volatile float *)c->b[0]; for (nb_i64 i = r0; i < r1; i++) x[i] = x[i] * 0.5f;"),
  unit("nothing", ""),
];

before(async () => {
  if (skip) return;
  process.env["NABLA_CACHE_DIR"] = folder;
  resetToolchain();
  runtime = await NativeRuntime.open();
  const addresses = await runtime.compileKernels(units);
  kernels = Object.fromEntries(units.map((u, i) => [u.symbol, addresses[i]!]));
});
after(() => {
  if (!skip) rmSync(folder, { recursive: true });
  if (inherited === undefined) delete process.env["NABLA_CACHE_DIR"];
  else process.env["NABLA_CACHE_DIR"] = inherited;
  resetToolchain();
});

const none = new Float64Array(0);

test("phases run in order, scalars are read at every run, at 1, 2 and 7 threads", { skip }, async () => {
  const n = 10_001;
  const pointer = runtime.alloc(4 * n);
  const x = new Float32Array(runtime.view(pointer, 4 * n));
  const b = new ProgramBuilder();
  const commands = Array.from({ length: 20 }, (_, i) =>
    b.command({ fn: 0, rows: n, grain: 64, buffers: [[0, 0]], scalars: [i % 2] }),
  );
  for (const c of commands) b.phase([c]);
  const program = runtime.createProgram(b.build({ numBuffers: 1, numScalars: 2, scratchBytes: 0 }), [
    kernels["add_scalar"]!,
  ]);
  let expected = 0;
  for (const threads of [1, 2, 7, 2]) {
    runtime.setThreads(threads);
    assert.equal(runtime.threads, threads);
    for (const scalars of [
      [1, 2],
      [3, 5],
    ]) {
      expected += 10 * (scalars[0]! + scalars[1]!);
      assert.equal(program.run(Float64Array.of(pointer), Float64Array.from(scalars)), 0);
      assert.ok(
        x.every((v) => v === expected),
        `${threads} threads: expected ${expected}, got ${x.find((v) => v !== expected)}`,
      );
    }
  }
  // queued runs: each takes its own scalars
  const scalars = Float64Array.of(1, 1);
  const runs = [1, 2, 3, 4].map((v) => {
    scalars.fill(v);
    return program.runAsync(Float64Array.of(pointer), scalars);
  });
  scalars.fill(1000);
  assert.deepEqual(await Promise.all(runs), [0, 0, 0, 0]);
  assert.equal(x[n - 1], expected + 20 * 10);
  program.dispose();
  assert.throws(() => program.run(Float64Array.of(pointer), scalars), /disposed/);
  runtime.free(pointer);
});

test("loops run their phases again with other buffers, also one inside another, at 1, 2 and 7 threads", {
  skip,
}, () => {
  const n = 1000;
  const [outer, inner] = [3, 4];
  const pointer = runtime.alloc(4 * n * outer * inner);
  const other = runtime.alloc(4 * n * outer * 2);
  const x = new Float32Array(runtime.view(pointer, 4 * n * outer * inner));
  const y = new Float32Array(runtime.view(other, 4 * n * outer * 2));
  const b = new ProgramBuilder();
  const add = (slot: number, scalar: number): number =>
    b.command({ fn: 0, rows: n, grain: 64, buffers: [[slot, 0]], scalars: [scalar] });
  const [each, early, after] = [add(0, 0), add(1, 1), add(1, 0)];
  b.phase([early]);
  b.phase([each]);
  b.phase([after]);
  // the first iteration adds to the first half of y, those behind it, one after the other, to the second half
  const start = b.buffer(1, 4 * n * outer);
  const of = { command: each, buffer: 0 };
  b.loop({ first: 1, last: 1, count: inner, moves: [{ of, stride: 4 * n }] });
  b.loop({
    first: 0,
    last: 2,
    count: outer,
    moves: [
      { of, stride: 4 * n * inner },
      { of: { command: early, buffer: 0 }, stride: 4 * n, start },
    ],
  });
  const table = b.build({ numBuffers: 2, numScalars: 2, scratchBytes: 0 });
  const program = runtime.createProgram(table, [kernels["add_scalar"]!]);
  for (const threads of [1, 2, 7]) {
    runtime.setThreads(threads);
    for (let run = 0; run < 20; run++) {
      x.fill(0);
      y.fill(0);
      assert.equal(program.run(Float64Array.of(pointer, other), Float64Array.of(1, 5)), 0);
      assert.ok(x.every((v) => v === 1));
      // "after" adds 1 to the first part three times; "early" adds 5 there once, then to the fourth and fifth parts
      const parts = Array.from({ length: 6 }, (_, i) => y.subarray(i * n, (i + 1) * n));
      [8, 0, 0, 5, 5, 0].forEach((expected, i) => {
        assert.ok(
          parts[i].every((v) => v === expected),
          `part ${i} of y is ${parts[i][0]}, expected ${expected}`,
        );
      });
    }
  }
  assert.throws(() => {
    b.loop({ first: 2, last: 5, count: 2, moves: [] });
    runtime.createProgram(b.build({ numBuffers: 2, numScalars: 2, scratchBytes: 0 }), [kernels["add_scalar"]!]);
  }, /a loop over phases that do not exist/);
  runtime.setThreads(2);
});

test("a failure is reported once, and later commands that write state are skipped", { skip }, () => {
  for (const threads of [1, 2, 7]) {
    runtime.setThreads(threads);
    const pointer = runtime.alloc(4096);
    const x = new Int32Array(runtime.view(pointer, 4096));
    const b = new ProgramBuilder();
    b.phase([b.command({ fn: 1, rows: 1000, grain: 10, buffers: [], params: [77, 123] })]);
    b.phase([
      b.command({ fn: 0, rows: 100, grain: 7, buffers: [[0, 0]], params: [5], writesState: true }),
      b.command({ fn: 0, rows: 100, grain: 7, buffers: [[0, 400]], params: [6] }),
    ]);
    const program = runtime.createProgram(b.build({ numBuffers: 1, numScalars: 0, scratchBytes: 0 }), [
      kernels["mark"]!,
      kernels["fail_at"]!,
    ]);
    assert.notEqual(program.run(Float64Array.of(pointer), none), 0);
    assert.deepEqual(program.failure, { op: 77, position: 123 });
    assert.ok(x.subarray(0, 100).every((v) => v === 0));
    assert.ok(x.subarray(100, 200).every((v) => v === 6));
    program.dispose();
    runtime.free(pointer);
  }
});

test("every worker has the scratch that the program asked for", { skip }, () => {
  runtime.setThreads(7);
  const pointer = runtime.alloc(4096);
  const b = new ProgramBuilder();
  const floats = 3 << 20;
  b.phase([b.command({ fn: 0, rows: 64, grain: 1, buffers: [[0, 0]], params: [floats] })]);
  const program = runtime.createProgram(b.build({ numBuffers: 1, numScalars: 0, scratchBytes: 4 * floats }), [
    kernels["scratch"]!,
  ]);
  assert.equal(program.run(Float64Array.of(pointer), none), 0);
  assert.ok(new Int32Array(runtime.view(pointer, 256)).every((v) => v === 1));
  program.dispose();
  runtime.free(pointer);
  runtime.setThreads(2);
});

test("denormals count as zero in a run and not after it", { skip }, () => {
  const pointer = runtime.alloc(64);
  const x = new Float32Array(runtime.view(pointer, 64));
  x.fill(2 ** -126);
  const b = new ProgramBuilder();
  b.phase([b.command({ fn: 0, rows: 16, grain: 1, buffers: [[0, 0]] })]);
  const program = runtime.createProgram(b.build({ numBuffers: 1, numScalars: 0, scratchBytes: 0 }), [kernels["tiny"]!]);
  program.run(Float64Array.of(pointer), none);
  assert.ok(x.every((v) => v === 0));
  assert.equal(2 ** -1074 * 1.5, 2 ** -1073);
  program.dispose();
  runtime.free(pointer);
});

test("the profile counts nanoseconds for each command", { skip }, () => {
  const b = new ProgramBuilder();
  const pointer = runtime.alloc(1 << 20);
  b.phase([
    b.command({ fn: 0, rows: 1 << 18, grain: 4096, buffers: [[0, 0]] }),
    b.command({ fn: 1, rows: 1, grain: 1, buffers: [] }),
  ]);
  const program = runtime.createProgram(b.build({ numBuffers: 1, numScalars: 0, scratchBytes: 0 }), [
    kernels["tiny"]!,
    kernels["nothing"]!,
  ]);
  program.profile(true);
  program.run(Float64Array.of(pointer), none);
  const [work, idle] = program.profileRead();
  assert.ok(work! > 10 * idle!, `${work} ns against ${idle} ns`);
  program.dispose();
  runtime.free(pointer);
});

test("a started run is ended by whoever is there, at 1, 2 and 7 threads", { skip }, async () => {
  const n = 10_001;
  const pointer = runtime.alloc(4 * n);
  const x = new Float32Array(runtime.view(pointer, 4 * n));
  const b = new ProgramBuilder();
  for (let i = 0; i < 20; i++) b.phase([b.command({ fn: 0, rows: n, grain: 64, buffers: [[0, 0]], scalars: [0] })]);
  const make = () =>
    runtime.createProgram(b.build({ numBuffers: 1, numScalars: 1, scratchBytes: 0 }), [kernels["add_scalar"]!]);
  const [program, other] = [make(), make()];
  const buffers = Float64Array.of(pointer);
  let expected = 0;
  const check = (what: string) =>
    assert.ok(
      x.every((v) => v === expected),
      `${what}: expected ${expected}, got ${x.find((v) => v !== expected)}`,
    );
  for (const threads of [1, 2, 7]) {
    runtime.setThreads(threads);
    for (let i = 0; i < 200; i++) {
      const scalars = Float64Array.of(1);
      program.start(buffers, scalars);
      scalars[0] = 1000; // it was copied
      for (let spin = 0; spin < i * 100; spin++) Math.sqrt(spin);
      assert.equal(program.finish(), 0);
      expected += 20;
      check(`${threads} threads, run ${i}`);
    }
    // nobody helps the workers for a while; then another program wants the pool
    program.start(buffers, Float64Array.of(1));
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(await other.runAsync(buffers, Float64Array.of(1)), 0);
    assert.equal(program.finish(), 0);
    expected += 40;
    check(`${threads} threads, two programs`);
  }
  program.start(buffers, Float64Array.of(1));
  program.dispose(); // ends it first
  expected += 20;
  check("disposed of");
  other.dispose();
  runtime.free(pointer);
  runtime.setThreads(2);
});

test("a program without commands runs", { skip }, async () => {
  const program = runtime.createProgram(
    new ProgramBuilder().build({ numBuffers: 0, numScalars: 0, scratchBytes: 0 }),
    [],
  );
  program.start(none, none);
  assert.equal(program.finish(), 0);
  assert.equal(program.run(none, none), 0);
  assert.equal(await program.runAsync(none, none), 0);
  program.dispose();
});

test("a table that is not sound is refused with the reason", { skip }, () => {
  const make = (change: (t: Int32Array) => Int32Array | undefined) => {
    const b = new ProgramBuilder();
    b.phase([b.command({ fn: 0, rows: 2, grain: 1, buffers: [[0, 0]], params: [1, 2] })]);
    const table = b.build({ numBuffers: 1, numScalars: 0, scratchBytes: 0 });
    return () => runtime.createProgram(change(table) ?? table, [kernels["nothing"]!]);
  };
  assert.throws(
    make((t) => void (t[0] = 1)),
    /not a command table/,
  );
  assert.throws(
    make((t) => void (t[1] = 99)),
    /another version/,
  );
  assert.throws(
    make((t) => void (t[8] = 3)),
    /a phase names a command/,
  );
  assert.throws(
    make((t) => void (t[9] = 5)),
    /function that does not exist/,
  );
  assert.throws(
    make((t) => void (t[9] = -99)),
    /function that does not exist/,
  );
  assert.throws(
    make((t) => t.subarray(0, t.length - 1)),
    /too short or too long/,
  );
  assert.throws(
    make((t) => Int32Array.of(...t, 0)),
    /too short or too long/,
  );
  assert.throws(
    () => new ProgramBuilder().command({ fn: "gem" as "gemm", rows: 1, grain: 1, buffers: [] }),
    /no builtin kernel "gem"/,
  );
});

test("builtin names and their encoding agree with the library", { skip }, () => {
  for (const name of builtins) assert.ok(runtime.builtin(name) > 0, name);
  assert.equal(new Set(builtins.map((b) => runtime.builtin(b))).size, builtins.length);
});

test("equal units are compiled once, and a second process finds them on disk", { skip }, async () => {
  const count = () => readdirSync(folder, { recursive: true }).filter((f) => String(f).includes("kernel-")).length;
  const before = count();
  const fresh = unit("fresh", "(void)c; /* only here */");
  const [a, b] = await runtime.compileKernels([fresh, fresh, units[0]!]);
  assert.equal(a, b);
  assert.equal(count(), before + 1);
});

test("a library that is cut short or no library at all is set aside and built again", { skip }, async () => {
  const dir = cacheFolder();
  const victims = [unit("victim_a", "(void)c; (void)1;"), unit("victim_b", "(void)c; (void)2;")];
  const list = () => new Set(readdirSync(dir).filter((f) => f.startsWith("kernel-") && !f.includes(".bad")));
  const damage = [(whole: Buffer) => whole.subarray(0, whole.length / 2), () => Buffer.from("not a library")];
  for (const [i, victim] of victims.entries()) {
    const known = list();
    await runtime.compileKernels([victim]);
    const [made] = [...list()].filter((f) => !known.has(f));
    // a new file under the old name (this process has the old one mapped), met by a process that knows nothing of it
    const path = join(dir, made!);
    const whole = readFileSync(path);
    rmSync(path);
    writeFileSync(path, damage[i]!(whole));
    const script = `import { NativeRuntime } from ${JSON.stringify(new URL("../../../src/backends/cpu/native.ts", import.meta.url).href)};
      const r = await NativeRuntime.open(); const [p] = await r.compileKernels([${JSON.stringify(victim)}]); console.log(p > 0);`;
    const run = spawnSync(process.execPath, [...typescript, "--input-type=module", "-e", script], {
      encoding: "utf8",
      env: { ...process.env, NABLA_CACHE_DIR: folder },
    });
    assert.equal(run.stdout.trim(), "true", run.stderr);
    assert.ok(readdirSync(dir).some((f) => f.startsWith(`${made}.bad`)));
  }
});

test("kernels of one prelude are built together, and each is found alone as if it had been; one that is no C leaves the others whole", {
  skip,
}, async () => {
  const count = 2 * availableParallelism() + 1;
  const made = (which: string, body: (i: number) => string) =>
    Array.from({ length: count }, (_, i) => ({
      symbol: "nabla_kernel",
      source: `${lanesPrelude(4, i % 2 ? ["f_exp"] : [])}
void nabla_kernel(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid) { /* ${which} */ ${body(i)} }
`,
    }));
  const libraries = () => readdirSync(cacheFolder()).filter((name) => /^kernel-[0-9a-f]+\.(so|dylib)$/.test(name));
  const files = () => new Set(libraries().map((name) => statSync(join(cacheFolder(), name)).ino)).size;
  const store = (i: number) => `((float *)c->b[0])[${i}] = ${i} + ${i % 2 ? "f_exp(f_splat(0.f))[0]" : "0"};`;
  const [names, inodes] = [libraries().length, files()];
  const good = made("good", store);
  await buildAhead(good, runtime.features);
  assert.equal(libraries().length, names + count);
  assert.ok(files() - inodes <= availableParallelism() + 1, `${files() - inodes} files for ${count} kernels`);
  const functions = await runtime.compileKernels(good);
  assert.equal(new Set(functions).size, count);
  assert.equal(libraries().length, names + count, "none was built again");
  const builder = new ProgramBuilder();
  for (let i = 0; i < count; i++)
    builder.phase([builder.command({ fn: i, rows: 1, grain: 1, buffers: [[0, 0]], scalars: [] })]);
  const program = runtime.createProgram(builder.build({ numBuffers: 1, numScalars: 0, scratchBytes: 0 }), functions);
  const pointer = runtime.alloc(4 * count);
  program.run(Float64Array.of(pointer), none);
  const values = new Float32Array(runtime.view(pointer, 4 * count));
  assert.deepEqual(
    Array.from(values),
    Array.from({ length: count }, (_, i) => i + (i % 2)),
  );
  program.dispose();
  runtime.free(pointer);

  const mixed = made("mixed", (i) => (i === 1 ? "this is no C" : store(i)));
  await buildAhead(mixed, runtime.features);
  await assert.rejects(runtime.compileKernels(mixed), { name: "CompilerError", message: /kept at .*\.c/ });
  const whole = await runtime.compileKernels(mixed.filter((_, i) => i !== 1));
  assert.equal(new Set(whole).size, count - 1);
});

test("a source that does not compile gives the command, the compiler's words and the kept source", {
  skip,
}, async () => {
  const bad = { symbol: "bad", source: "int bad( { return 1; }\n" };
  await assert.rejects(runtime.compileKernels([bad]), (error: Error) => {
    assert.ok(error instanceof CompilerError);
    assert.match(error.message, /kept at .*\.c/);
    assert.match(error.message, /command: .*-O2/);
    assert.match(error.message, /error/);
    return true;
  });
  await assert.rejects(runtime.compileKernels([{ symbol: "absent", source: "int other;\n" }]), /no symbol absent/);
});

test("a cache folder that can't be written is replaced by a private one", { skip }, async () => {
  const file = join(folder, "a-file");
  writeFileSync(file, "");
  process.env["NABLA_CACHE_DIR"] = file;
  resetToolchain();
  try {
    const other = cacheFolder();
    assert.ok(!other.startsWith(file));
    assert.ok((await cpuFeatures()) > 0);
  } finally {
    process.env["NABLA_CACHE_DIR"] = folder;
    resetToolchain();
  }
});
