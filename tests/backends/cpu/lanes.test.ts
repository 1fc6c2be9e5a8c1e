/**
 * The functions that generated kernels compute with (runtime/lanes.h), at every number of lanes that this processor
 * allows: against exact arithmetic where a result is exact, in units of the last place where it is not. Kernels run with
 * denormals counted as zero, so the expectations are rounded like that too.
 */
import assert from "node:assert/strict";
import { before, test } from "node:test";
import { type Lanes, lanesFor, lanesPrelude } from "../../../src/backends/cpu/lanes.ts";
import { NativeRuntime, ProgramBuilder } from "../../../src/backends/cpu/native.ts";
import { cpuFeatures, features, findCompiler } from "../../../src/backends/cpu/toolchain.ts";
import { erf } from "../../../src/backends/reference/erf.ts";
import { threefry2x32 } from "../../../src/backends/reference/random.ts";
import {
  fromBfloat16Bits,
  fromFloat16Bits,
  roundHalfEven,
  toBfloat16Bits,
  toFloat16Bits,
} from "../../../src/core/dtype.ts";

const skip = findCompiler() ? false : "no C compiler here";
const all: Lanes[] = [4, 8, 16];
const NAN = Number.NaN;
const INF = Number.POSITIVE_INFINITY;

/** Letters of memory types: their C type and array. */
const memory = {
  f: ["float", Float32Array],
  d: ["double", Float64Array],
  i: ["nb_i32", Int32Array],
  u: ["u32", Uint32Array],
  h: ["u16", Uint16Array],
  b: ["u16", Uint16Array],
  c: ["u8", Uint8Array],
  m: ["u8", Uint8Array],
} as const;
type Letter = keyof typeof memory;

/** Expressions to test: the letters of the operands x, y, z in memory, and of the result. */
const expressions: [signature: string, expression: string][] = [];
const index = new Map<string, number>();
/** Declares an expression at load time; the kernels hold all of them. */
function declare(signature: string, expression: string): string {
  const key = `${signature} ${expression}`;
  if (!index.has(key)) {
    index.set(key, expressions.length);
    expressions.push([signature, expression]);
  }
  return key;
}
const needed = (): string[] => [...new Set(expressions.flatMap(([, e]) => e.match(/\b[a-z]_\w+/g) ?? []))];

const isDouble = (signature: string, expression: string): boolean =>
  /d/.test(signature) || /\bd_|_d\b/.test(expression);

/** One switch over all expressions; loads and stores whole vectors, the last n lanes by the partial forms. */
function source(lanes: Lanes, doubles: boolean): string {
  const cases = expressions.map(([signature, expression], k) => {
    if (isDouble(signature, expression) !== doubles) return "";
    const letters = [...signature] as Letter[];
    const result = letters.pop()!;
    const type = (l: Letter): string => memory[l][0];
    const load = (form: string, n: string): string =>
      letters
        .map((l, i) => `const __auto_type ${"xyz"[i]} = ${l}_load${form}((const ${type(l)} *)c->b[${i}] + i${n});`)
        .join(" ");
    const out = `(${type(result)} *)c->b[${letters.length}] + i`;
    return `case ${k}: for (; i + L <= r1; i += L) { ${load("", "")} ${result}_store(${out}, ${expression}); }
      { const int n = (int)(r1 - i); ${load("n", ", n")} ${result}_storen(${out}, ${expression}, n); } break;`;
  });
  return `${lanesPrelude(lanes, doubles ? [...needed(), "d"] : needed().filter((n) => !/^d_|_d$/.test(n)))}
void lanes_test(const Cmd *c, nb_i64 r0, nb_i64 r1, int tid) {
  nb_i64 i = r0;
  switch (c->p[0]) { ${cases.join("\n")} }
}
`;
}

let runtime: NativeRuntime;
const kernels: { lanes: Lanes; doubles: boolean; address: number; how: string }[] = [];

/** Runs an expression with every kernel; `check` gets each result. Operands are padded by nothing: n may be odd. */
function evaluate(
  key: string,
  operands: ArrayLike<number>[],
  check: (result: ArrayLike<number>, where: string) => void,
) {
  const [signature, expression] = expressions[index.get(key)!]!;
  const letters = [...signature] as Letter[];
  const n = operands[0]!.length;
  for (const { lanes, doubles, address, how } of kernels) {
    if (doubles !== isDouble(signature, expression)) continue;
    const arrays = letters.map((l) => {
      const bytes = Math.max(64, n * memory[l][1].BYTES_PER_ELEMENT);
      const pointer = runtime.alloc(bytes + 64);
      return { pointer, array: new memory[l][1](runtime.view(pointer, bytes + 64)) };
    });
    const result = arrays[operands.length]!.array;
    operands.forEach((o, i) => {
      arrays[i]!.array.set(o);
    });
    result.fill(77, n);
    const b = new ProgramBuilder();
    b.phase([
      b.command({
        fn: 0,
        rows: n,
        grain: Math.max(1, n),
        buffers: arrays.map((_, i) => [i, 0] as const),
        params: [index.get(key)!],
      }),
    ]);
    const program = runtime.createProgram(b.build({ numBuffers: arrays.length, numScalars: 0, scratchBytes: 0 }), [
      address,
    ]);
    assert.equal(
      program.run(
        Float64Array.from(arrays, (a) => a.pointer),
        new Float64Array(0),
      ),
      0,
    );
    program.dispose();
    assert.equal(result[n], 77, `${expression} at ${lanes} lanes${how} wrote past its end`);
    check(result.slice(0, n), `${expression} at ${lanes} lanes${how}`);
    for (const a of arrays) runtime.free(a.pointer);
  }
}

/** Denormals as the zero that kernels take them for. */
const flush = (x: number, letter: string): number =>
  (letter === "f" && Math.abs(x) < 2 ** -126) || (letter === "d" && Math.abs(x) < 2 ** -1022) ? x * 0 : x;

/** Results have to be exactly `f` of the operands (NaN equals NaN; zeros are told apart where `zeros`). */
function exact(key: string, operands: ArrayLike<number>[], f: (...x: number[]) => number, zeros = true) {
  evaluate(key, operands, (result, where) => {
    for (let i = 0; i < result.length; i++) {
      const x = operands.map((o, k) => flush(o[i]!, key[k]!));
      const expected = flush(f(...x), key[operands.length]!);
      const got = flush(result[i]!, key[operands.length]!);
      if (!(Object.is(got, expected) || (!zeros && got === expected)))
        assert.fail(`${where}: of ${x.join(", ")} (position ${i}) expected ${expected}, got ${result[i]}`);
    }
  });
}

const scratch = new DataView(new ArrayBuffer(8));
/** Distance between neighbours at x, of float32 or float64. */
function unit(x: number, double: boolean): number {
  const a = Math.abs(x);
  if (!double) return 2 ** (Math.max(-126, Math.floor(Math.log2(Math.max(a, 2 ** -126)))) - 23);
  scratch.setFloat64(0, a);
  const e = Math.max(1, scratch.getUint32(0) >>> 20);
  return e > 52 ? 2 ** (e - 1023 - 52) : Number.MIN_VALUE * 2 ** (e - 1);
}
/** Results may differ from `f` by `ulps` units of the last place; special values and signs of zeros have to agree. */
function close(key: string, operands: ArrayLike<number>[], f: (...x: number[]) => number, ulps: number) {
  const double = key[operands.length] === "d";
  evaluate(key, operands, (result, where) => {
    let worst = 0;
    let at = 0;
    for (let i = 0; i < result.length; i++) {
      const wide = f(...operands.map((o, k) => flush(o[i]!, key[k]!)));
      const expected = double ? wide : Math.fround(wide);
      const got = flush(result[i]!, double ? "d" : "f");
      if (Object.is(got, expected) || Object.is(got, flush(expected, double ? "d" : "f"))) continue;
      if (Math.abs(got - wide) < 2 ** -126 && got !== 0) continue; // intermediate results may have been flushed
      let error = Math.abs(got - wide) / unit(expected, double);
      if (Number.isNaN(error) || (got === 0 && expected === 0) || (!Number.isFinite(got) && Math.abs(wide) < 2 ** 127))
        error = INF;
      else if (!Number.isFinite(got) || !Number.isFinite(expected)) error = 1; // on both sides of the overflow
      if (error > worst) {
        worst = error;
        at = i;
      }
    }
    if (process.env["LANES_ULPS"]) console.log(`${where}: ${worst.toFixed(3)} ulp at ${operands.map((o) => o[at])}`);
    assert.ok(
      worst <= ulps,
      `${where}: ${worst} ulp from ${f(...operands.map((o) => o[at]!))} at ${operands.map((o) => o[at])}: got ${result[at]}, allowed ${ulps}`,
    );
  });
}

let seed = 12345;
const random = (): number => {
  seed = (Math.imul(seed, 1664525) + 1013904223) | 0;
  return ((seed >>> 8) + 0.5) / 2 ** 24;
};
/** n values spread evenly over [low, high], jittered, rounded to float32 unless `double`. */
const spread = (low: number, high: number, n: number): number[] =>
  Array.from({ length: n }, (_, i) => Math.fround(low + ((high - low) * (i + random())) / n));
/** Values of every magnitude: random bits as float32, NaN and infinities among them. */
const bits = (n: number): number[] => {
  const u = Uint32Array.from({ length: n }, () => (random() * 2 ** 32) ^ (random() * 2 ** 16));
  return [...new Float32Array(u.buffer)];
};
const special = [
  0,
  -0,
  1,
  -1,
  INF,
  -INF,
  NAN,
  0.5,
  -0.5,
  1.5,
  2.5,
  -2.5,
  3,
  -3,
  2 ** -149,
  -(2 ** -149),
  2 ** -126,
  -(2 ** -126),
  2 ** -130,
  3.4028234663852886e38,
  -3.4028234663852886e38,
  2 ** 23,
  -(2 ** 23),
  2 ** 23 + 1,
  2 ** 24 + 2,
  2 ** 31,
  -(2 ** 31),
  2 ** 32,
  1e-8,
  -1e-8,
  1e-20,
  8388607.5,
  -8388607.5,
  4194304.5,
  2147483520,
  4294967040,
  255,
  256,
  -7,
  88.7,
  88.73,
  -87.4,
  -103.9,
  -104.1,
  89.5,
  9,
  -9,
].map(Math.fround);
const floats = [
  ...special,
  ...bits(3000),
  ...spread(-100, 100, 2000),
  ...spread(-2, 2, 2000),
  ...spread(-1e-3, 1e-3, 501),
];
/** Every pair of special values, and random ones. */
const pairs = (values: number[], more: number): [number[], number[]] => {
  const x = values.flatMap((v) => values.map(() => v));
  const y = values.flatMap(() => values);
  for (let i = 0; i < more; i++) {
    x.push(values[Math.floor(random() * values.length)]!);
    y.push(values[Math.floor(random() * values.length)]!);
  }
  return [x, y];
};
const ints = [
  0,
  1,
  -1,
  2,
  -2,
  3,
  7,
  -7,
  31,
  32,
  33,
  100,
  -100,
  255,
  65535,
  2 ** 30,
  2 ** 31 - 1,
  -(2 ** 31),
  123456789,
  -987654321,
];

before(async () => {
  if (skip) return;
  runtime = await NativeRuntime.open();
  runtime.setThreads(1);
  const bits = await cpuFeatures();
  const widths = all.filter((l) => l <= lanesFor(bits, false));
  const units = widths.flatMap((lanes) =>
    [false, true].map((doubles) => ({ lanes, doubles, how: "", symbol: "lanes_test", source: source(lanes, doubles) })),
  );
  // and once as for a processor that has no more than the compiler's baseline
  const bare = ["AVX512F", "AVX512DQ", "AVX512BW", "AVX512VL", "AVX2", "FMA", "F16C"]
    .map((x) => `#undef __${x}__\n`)
    .join("");
  for (const doubles of [false, true])
    units.push({ lanes: 4, doubles, how: " (baseline)", symbol: "lanes_test", source: bare + source(4, doubles) });
  const used = units.filter((u) => !u.doubles || u.lanes <= lanesFor(bits, true));
  const addresses = await runtime.compileKernels(used);
  used.forEach(({ lanes, doubles, how }, i) => {
    kernels.push({ lanes, doubles, how, address: addresses[i]! });
  });
});
test("the number of lanes is that of a register", () => {
  assert.equal(lanesFor(features.x86, false), 4);
  assert.equal(lanesFor(features.x86 | features.avx2 | features.fma, false), 8);
  assert.equal(lanesFor(features.x86 | features.avx2 | features.fma, true), 4);
  assert.equal(lanesFor(features.x86 | features.avx2 | features.fma | features.avx512, false), 16);
  assert.equal(lanesFor(features.x86 | features.avx2 | features.fma | features.avx512, true), 8);
  assert.equal(lanesFor(features.arm64, true), 4);
});

const each = (name: string, f: (x: number) => number, ulps: number, more: number[]) => {
  const key = declare("ff", `f_${name}(x)`);
  test(`float32 ${name} is within ${ulps} ulp`, { skip }, () => close(key, [[...floats, ...more]], f, ulps));
};
each("exp", Math.exp, 1, spread(-104, 89, 5000));
each("log", Math.log, 1, spread(0.5, 2, 5000));
each("tanh", Math.tanh, 2.5, spread(-10, 10, 5000));
each("expm1", Math.expm1, 2, [...spread(-20, 89, 5000), ...spread(-1, 1, 3000)]);
each("log1p", Math.log1p, 2, [...spread(-1, 2, 5000), ...spread(-1e-4, 1e-4, 1000)]);
each("erf", erf, 2, spread(-5, 5, 8000));
each("atan", Math.atan, 2, spread(-4, 4, 5000));
each("sin", Math.sin, 1.5, [...spread(-12, 12, 5000), ...spread(-1.1e5, 1.1e5, 5000)]);
each("cos", Math.cos, 1.5, [...spread(-12, 12, 5000), ...spread(-1.1e5, 1.1e5, 5000)]);
each("sqrt", Math.sqrt, 0.5, []);

/** C's pow, of which JavaScript's differs at 1 and at -1 to infinity. */
const power = (a: number, b: number): number => (a === 1 || (a === -1 && Math.abs(b) === INF) ? 1 : a ** b);
const pow = declare("fff", "f_pow(x, y)");
test("float32 pow is within 1 ulp, with C's special cases", { skip }, () => {
  close(pow, pairs(special, 0), power, 1);
  const x = spread(0, 30, 5000);
  close(pow, [x, x.map(() => Math.fround(random() * 60 - 30))], power, 1);
  close(pow, [bits(3000), bits(3000)], power, 1);
  close(pow, [spread(0.999, 1.001, 2000), spread(-8e4, 8e4, 2000)], power, 1);
  close(pow, [spread(-20, 20, 2000), spread(-20, 20, 2000).map(Math.round)], power, 1);
});

const mod = (a: number, b: number): number => {
  const r = a % b;
  return r !== 0 && r < 0 !== b < 0 ? r + b : r;
};
const fround2 =
  (f: (a: number, b: number) => number) =>
  (a: number, b: number): number =>
    Math.fround(f(a, b));
const exactFloats: [signature: string, expression: string, f: (...x: number[]) => number, zeros?: boolean][] = [
  ["ff", "f_neg(x)", (x) => -x],
  ["ff", "f_abs(x)", Math.abs],
  ["ff", "f_sign(x)", Math.sign],
  ["ff", "f_floor(x)", Math.floor],
  ["ff", "f_ceil(x)", Math.ceil],
  ["ff", "f_trunc(x)", Math.trunc],
  ["ff", "f_round(x)", (x) => (Number.isFinite(x) ? roundHalfEven(x) : x), false],
  ["dd", "d_neg(x)", (x) => -x],
  ["dd", "d_abs(x)", Math.abs],
  ["dd", "d_sign(x)", Math.sign],
  ["dd", "d_floor(x)", Math.floor],
  ["dd", "d_ceil(x)", Math.ceil],
  ["dd", "d_trunc(x)", Math.trunc],
  ["dd", "d_round(x)", (x) => (Number.isFinite(x) ? roundHalfEven(x) : x), false],
  ["dd", "d_sqrt(x)", Math.sqrt],
  ["ff", "f_splat(2.5f) + x * 0.0f", (x) => 2.5 + x * 0],
  ["ff", "f_round_h(x)", (x) => fromFloat16Bits(toFloat16Bits(x))],
  ["fh", "x", toFloat16Bits],
  ["fb", "x", toBfloat16Bits],
  ["ff", "f_from_m(m_from_f(x))", (x) => (x !== 0 ? 1 : 0)],
  ["fm", "m_from_f(x)", (x) => (x !== 0 ? 1 : 0)],
  ["dm", "m_from_d(x)", (x) => (x !== 0 ? 1 : 0)],
  ["fi", "i_from_f(x)", (x) => Math.min(Math.max(Math.trunc(x), -(2 ** 31)), 2 ** 31 - 1) | 0],
  ["di", "i_from_d(x)", (x) => Math.min(Math.max(Math.trunc(x), -(2 ** 31)), 2 ** 31 - 1) | 0],
  ["fu", "u_from_f(x)", (x) => Math.min(Math.max(Math.trunc(x), 0), 2 ** 32 - 1) >>> 0],
  ["du", "u_from_d(x)", (x) => Math.min(Math.max(Math.trunc(x), 0), 2 ** 32 - 1) >>> 0],
  ["fc", "c_from_f(x)", (x) => Math.min(Math.max(Math.trunc(x), 0), 255) | 0],
  ["dc", "c_from_d(x)", (x) => Math.min(Math.max(Math.trunc(x), 0), 255) | 0],
  ["fd", "d_from_f(x)", (x) => x],
  ["df", "f_from_d(x)", Math.fround],
  ["dd", "d_from_m(m_from_d(x))", (x) => (x !== 0 ? 1 : 0)],
  ["fi", "i_bits_f(f_bits_u(u_bits_f(f_bits_i(i_bits_u(u_bits_i(i_bits_f(x)))))))", (x) => bitsOf(x)],
];
const view = new DataView(new ArrayBuffer(4));
const bitsOf = (x: number): number => {
  view.setFloat32(0, x);
  return view.getInt32(0);
};
const exactKeys = exactFloats.map(([signature, expression]) => declare(signature, expression));
test("rounding, signs, and conversions of floats are exact", { skip }, () => {
  for (const [i, [signature, expression, f, zeros]] of exactFloats.entries()) {
    // a bit pattern of a NaN or a denormal is compared for itself only where it is one of integers
    const values = /bits/.test(expression) ? floats.filter((x) => !Number.isNaN(x)) : floats;
    if (/bits|x$/.test(expression) && signature !== "ff") bitwise(exactKeys[i]!, values, f);
    else exact(exactKeys[i]!, [values], f, zeros);
    if (signature[0] === "d") exact(exactKeys[i]!, [doubles], f, zeros);
  }
});
const doubles = [
  ...special,
  ...spread(-5e9, 5e9, 1000),
  ...Array.from({ length: 999 }, () => (random() - 0.5 + random() * 2 ** -24) * 2 ** Math.round(random() * 120 - 50)),
  2 ** 31 - 0.5,
  2 ** 31 - 1,
  -(2 ** 31) - 0.5,
  2 ** 32 - 0.5,
  2 ** 52 + 1,
  -(2 ** 53),
  4503599627370495.5,
  1e300,
];
/** Integers made of float operands as they are in memory: no flushing, and a NaN's payload is free. */
function bitwise(key: string, values: number[], f: (x: number) => number) {
  evaluate(key, [values], (result, where) => {
    for (let i = 0; i < values.length; i++) {
      const x = values[i]!;
      if (Number.isNaN(x))
        assert.ok((result[i]! & 0x7fff) > (key[1] === "b" ? 0x7f80 : 0x7c00), `${where}: NaN became ${result[i]}`);
      else assert.equal(result[i], f(x), `${where}: of ${x}`);
    }
  });
}

const halves = Uint16Array.from({ length: 65536 }, (_, i) => i);
const loads: [string, string, (x: number) => number][] = [
  ["hf", "x", fromFloat16Bits],
  ["bf", "x", fromBfloat16Bits],
  ["ci", "x", (x) => x & 255],
  ["mi", "x", (x) => (x & 255 ? -1 : 0)],
  ["cc", "x", (x) => x & 255],
  ["ic", "x", (x) => x & 255],
  ["mm", "x", (x) => (x & 255 ? 1 : 0)],
];
const copies = [declare("hh", "x"), declare("bb", "x")];
const rounding = declare("ff", "f_round_b(x)");
const loadKeys = loads.map(([signature, expression]) => declare(signature, expression));
test("every half, bfloat16 and byte is loaded and stored right, in whole vectors and in parts", { skip }, () => {
  for (const [i, [, , f]] of loads.entries()) {
    exact(loadKeys[i]!, [halves], f);
    for (let n = 1; n < 16; n++) exact(loadKeys[i]!, [halves.slice(15360, 15360 + n)], f);
  }
  for (const [key, infinity] of [
    [copies[0]!, 0x7c00],
    [copies[1]!, 0x7f80],
  ] as const) // a NaN stays one
    evaluate(key, [halves], (result, where) => {
      for (let i = 0; i < 65536; i++)
        if ((i & 0x7fff) > infinity)
          assert.ok((result[i]! & 0x7fff) > infinity, `${where}: NaN ${i} became ${result[i]}`);
        else assert.equal(result[i], i, where);
    });
  exact(rounding, [floats.map((x) => flush(x, "f"))], (x) => fromBfloat16Bits(toBfloat16Bits(x)));
});

/** Ties and values just beside them, at every exponent of halves: the hard part of rounding twice as wide a type. */
test("stores round to nearest, ties to even", { skip }, () => {
  const values: number[] = [];
  for (let k = 0; k < 65535; k += 7)
    for (const d of [-1, 0, 1])
      values.push(f32((fromFloat16Bits(k & 0x7fff) + fromFloat16Bits((k & 0x7fff) + 1)) / 2, d));
  bitwise(exactKeys[exactFloats.findIndex(([s]) => s === "fh")]!, values, toFloat16Bits);
  const ties = values.map((_, k) => f32b(((k * 3) << 16) + 0x7fff + (k % 3))).filter((x) => !Number.isNaN(x));
  bitwise(exactKeys[exactFloats.findIndex(([s]) => s === "fb")]!, ties, toBfloat16Bits);
});
const f32b = (b: number): number => {
  view.setInt32(0, b);
  return view.getFloat32(0);
};
/** The float32 `steps` places above x. */
const f32 = (x: number, steps: number): number => f32b(bitsOf(x) + steps);

const binary: typeof exactFloats = [
  ["fff", "f_max(x, y)", Math.max, false],
  ["fff", "f_min(x, y)", Math.min, false],
  ["fff", "f_mod(x, y)", fround2(mod)],
  ["ffm", "f_lt(x, y)", (x, y) => +(x < y)],
  ["ffm", "f_le(x, y)", (x, y) => +(x <= y)],
  ["ffm", "f_eq(x, y)", (x, y) => +(x === y)],
  ["fff", "f_sel(f_lt(x, y), x, f_neg(y))", (x, y) => (x < y ? x : -y)],
  ["ddd", "d_max(x, y)", Math.max, false],
  ["ddd", "d_min(x, y)", Math.min, false],
  ["ddd", "d_mod(x, y)", mod],
  ["ddm", "d_lt(x, y)", (x, y) => +(x < y)],
  ["ddm", "d_le(x, y)", (x, y) => +(x <= y)],
  ["ddm", "d_eq(x, y)", (x, y) => +(x === y)],
  ["ddd", "d_sel(d_lt(x, y), x, d_neg(y))", (x, y) => (x < y ? x : -y)],
  ["ddd", "d_pow(x, y)", power],
];
const binaryKeys = binary.map(([signature, expression]) => declare(signature, expression));
test("max, min, mod, comparisons and selects agree on every pair of special values", { skip }, () => {
  const normal = special.map((x) => flush(x, "f"));
  for (const [i, [, expression, f, zeros]] of binary.entries()) {
    if (/pow/.test(expression)) close(binaryKeys[i]!, pairs(special, 0), f, 1);
    else {
      exact(binaryKeys[i]!, pairs(normal, 0), f, zeros);
      exact(
        binaryKeys[i]!,
        [floats.filter((x) => x - x !== 0 || Math.abs(x) > 1e-30), spread(-3, 3, floats.length)].map((x) =>
          x.slice(0, 3001),
        ),
        f,
        zeros,
      );
    }
  }
});

const fused = [declare("ffff", "f_fma(x, y, z)"), declare("dddd", "d_fma(x, y, z)")];
test("a fused multiply-add rounds once", { skip }, () => {
  const a = 1 + 2 ** -12;
  exact(
    fused[0]!,
    [
      [a, 3, INF],
      [a, 4, 0],
      [-(1 + 2 ** -11), 5, 1],
    ],
    (x, y, z) => Math.fround(x * y + z),
  ); // exact in float64
  const b = 1 + 2 ** -30;
  exact(fused[1]!, [[b], [b], [-(1 + 2 ** -29)]], () => 2 ** -60);
});

const integer: typeof exactFloats = [
  ["iim", "i_lt(x, y)", (x, y) => +(x < y)],
  ["iim", "i_le(x, y)", (x, y) => +(x <= y)],
  ["iim", "i_eq(x, y)", (x, y) => +(x === y)],
  ["iii", "i_max(x, y)", Math.max],
  ["iii", "i_min(x, y)", Math.min],
  ["iii", "x + y", (x, y) => (x + y) | 0],
  ["iii", "x * y", (x, y) => Math.imul(x, y)],
  ["iii", "i_idiv(x, y)", (x, y) => (y ? Math.floor(x / y) | 0 : 0)],
  ["iii", "i_mod(x, y)", (x, y) => (y ? mod(x, y) | 0 : 0)],
  ["iii", "i_shl(x, y)", (x, y) => (y >= 0 && y < 32 ? x << y : 0)],
  ["iii", "i_shr(x, y)", (x, y) => x >> (y >= 0 && y < 32 ? y : 31)],
  [
    "iii",
    "i_pow(x, y)",
    (x, y) =>
      y < 0 ? (x === 1 ? 1 : x === -1 ? (y % 2 ? -1 : 1) : 0) : Number(BigInt.asIntN(32, modular(BigInt(x), y))),
  ],
  ["iii", "i_sel(i_lt(x, y), x, y)", Math.min],
  ["iii", "i_neg(x) + i_sign(y)", (x, y) => (-x + Math.sign(y)) | 0],
  ["iii", "i_abs(x) ^ y", (x, y) => Math.abs(x) ^ y],
  ["iif", "f_from_i(x) + f_from_m(m_from_i(y))", (x, y) => Math.fround(Math.fround(x) + +(y !== 0))],
  ["iid", "d_from_i(x) + d_from_m(m_from_i(y))", (x, y) => x + +(y !== 0)],
  ["iii", "x + i_from_m(m_from_i(y))", (x, y) => (x + +(y !== 0)) | 0],
];
const unsigned: typeof exactFloats = [
  ["uum", "u_lt(x, y)", (x, y) => +(x < y)],
  ["uum", "u_le(x, y)", (x, y) => +(x <= y)],
  ["uum", "u_eq(x, y)", (x, y) => +(x === y)],
  ["uuu", "u_max(x, y)", Math.max],
  ["uuu", "u_min(x, y)", Math.min],
  ["uuu", "u_idiv(x, y)", (x, y) => (y ? Math.floor(x / y) : 0)],
  ["uuu", "u_mod(x, y)", (x, y) => (y ? x % y : 0)],
  ["uuu", "u_shl(x, y)", (x, y) => (y < 32 ? (x << y) >>> 0 : 0)],
  ["uuu", "u_shr(x, y)", (x, y) => (y < 32 ? x >>> y : 0)],
  ["uuu", "u_pow(x, y)", (x, y) => Number(BigInt.asUintN(32, modular(BigInt(x), y)))],
  ["uuu", "u_sel(u_lt(x, y), x, y)", Math.min],
  ["uuf", "f_from_u(x) + f_from_m(m_from_u(y))", (x, y) => Math.fround(Math.fround(x) + +(y !== 0))],
  ["uud", "d_from_u(x) + d_from_m(m_from_u(y))", (x, y) => x + +(y !== 0)],
  ["uuu", "x + u_from_m(m_from_u(y)) + u_sign(x)", (x, y) => (x + +(y !== 0) + +(x !== 0)) >>> 0],
  ["uui", "i_from_u(x) ^ i_bits_u(u_from_i(i_from_u(y)))", (x, y) => x ^ y],
];
/** base to the n, modulo 2^32. */
function modular(base: bigint, n: number): bigint {
  let r = 1n;
  for (let e = n >>> 0; e; e >>>= 1, base = BigInt.asUintN(32, base * base))
    if (e & 1) r = BigInt.asUintN(32, r * base);
  return r;
}
const integerKeys = [...integer, ...unsigned].map(([signature, expression]) => declare(signature, expression));
test("integers wrap, divide toward -infinity, and shift out", { skip }, () => {
  const operands = pairs([...ints, ...Array.from({ length: 20 }, () => Math.floor((random() - 0.5) * 2 ** 32))], 0);
  const positive = operands.map((o) => o.map((x) => x >>> 0));
  for (const [i, [signature, , f]] of [...integer, ...unsigned].entries())
    exact(integerKeys[i]!, signature[0] === "u" ? positive : operands, f, false);
});

const wide: [string, (x: number) => number, number[]][] = [
  ["exp", Math.exp, spread(-700, 700, 500)],
  ["log", Math.log, spread(0, 1e3, 500)],
  ["log1p", Math.log1p, spread(-1, 1, 500)],
  ["expm1", Math.expm1, spread(-1, 1, 500)],
  ["sin", Math.sin, spread(-1e4, 1e4, 500)],
  ["cos", Math.cos, spread(-1e4, 1e4, 500)],
  ["atan", Math.atan, spread(-10, 10, 500)],
  ["tanh", Math.tanh, spread(-5, 5, 500)],
  ["erf", erf, spread(-5, 5, 500)],
];
const wideKeys = wide.map(([name]) => declare("dd", `d_${name}(x)`));
test("float64 functions are within 2 ulp of JavaScript's", { skip }, () => {
  for (const [i, [, f, more]] of wide.entries()) close(wideKeys[i]!, [[...special, ...more]], f, 2);
});

const across: [string, string, (a: number[]) => number][] = (["f", "d", "i", "u"] as const).flatMap((t) => {
  const splat = (e: string): string => `${t}_splat(${t}_h${e}(x))`;
  const wrap = (x: number): number => (t === "i" ? x | 0 : t === "u" ? x >>> 0 : x);
  return [
    [`${t}${t}`, splat("sum"), (a: number[]) => wrap(a.reduce((x, y) => x + y))],
    [
      `${t}${t}`,
      splat("prod"),
      (a: number[]) => wrap(a.reduce((x, y) => (t === "i" || t === "u" ? Math.imul(x, y) : x * y))),
    ],
    [`${t}${t}`, splat("max"), (a: number[]) => Math.max(...a)],
    [`${t}${t}`, splat("min"), (a: number[]) => Math.min(...a)],
  ] as [string, string, (a: number[]) => number][];
});
const acrossKeys = across.map(([signature, expression]) => declare(signature, expression));
const any = declare("fi", "i_splat(i_any(f_lt(x, f_splat(0))) != 0)");
const iota = declare("fi", "i_iota()");
test("reductions go over all lanes, NaN wins, and a mask is asked whether any lane is set", { skip }, () => {
  const check = (key: string, values: number[], f: (a: number[]) => number) =>
    evaluate(key, [values], (result, where) => {
      const lanes = Number(/at (\d+) lanes/.exec(where)![1]);
      for (let i = 0; i + lanes <= values.length; i += lanes)
        for (let l = 0; l < lanes; l++)
          assert.equal(result[i + l], f(values.slice(i, i + lanes)), `${where}, vector at ${i}`);
    });
  for (const [i, [signature, , f]] of across.entries()) {
    const float = "fd".includes(signature[0]!);
    const values = Array.from({ length: 160 }, (_, k) =>
      float ? [0.5, 1, 2, -1][(k * 7 + (k >> 4)) % 4]! : 3 + ((k * 7919) % 1000),
    );
    check(acrossKeys[i]!, values, f);
    for (let k = 0; k < 16; k++) {
      // one lane unlike the others, at every place
      check(
        acrossKeys[i]!,
        Array.from({ length: 16 }, (_, l) => (l === k ? 9 : 1)),
        f,
      );
      if (float)
        check(
          acrossKeys[i]!,
          Array.from({ length: 16 }, (_, l) => (l === k ? NAN : 1)),
          f,
        );
    }
  }
  for (let k = 0; k <= 16; k++)
    check(
      any,
      Array.from({ length: 16 }, (_, l) => (l === k ? -1 : 1)),
      (a) => +a.some((x) => x < 0),
    );
  evaluate(iota, [spread(0, 1, 16)], (result, where) => {
    const lanes = Number(/at (\d+) lanes/.exec(where)![1]);
    for (let i = 0; i < 16; i++) assert.equal(result[i], i % lanes, where);
  });
});

const bases = [0, 1, 2 ** 32 - 6, 2 ** 33 - 6, 123456789012];
const threefry = [
  declare("uu", "u_threefry(0x13198a2eu, 0x03707344u, x)"),
  ...bases.map((b) => declare("uu", `u_threefry64(7u, 0xfffffffeu, ${b}ll, x)`)),
];
test("random words are those of the reference backend, at any position", { skip }, () => {
  const word = (k0: number, k1: number, position: number): number => {
    const pair = [0, 0];
    const block = Math.floor(position / 2);
    threefry2x32(k0, k1, block >>> 0, Math.floor(block / 2 ** 32), pair, 0);
    return pair[position % 2]!;
  };
  const positions = Array.from({ length: 101 }, (_, i) => i);
  exact(threefry[0]!, [[...positions, 2 ** 32 - 1]], (x) => word(0x13198a2e, 0x03707344, x));
  for (const [i, base] of bases.entries()) exact(threefry[i + 1]!, [positions], (x) => word(7, 0xfffffffe, base + x));
});
