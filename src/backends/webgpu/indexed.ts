/**
 * Sorting, running sums, and writing by index as WGSL, deterministic all: a stable merge sort of flat passes without
 * barriers, and a scatter that walks the sources of one destination in their order. Operands are 32-bit here; narrower
 * types have been widened before. Memory and order of the dispatches are the caller's (templates.ts).
 */
import type { Extent } from "../../compiler/lines.ts";
import type { Buffer } from "../../compiler/schedule.ts";
import { type Dispatch, type Element, Shader } from "./shader.ts";

/** Lines of n elements: position (o, r, i) is at offset + o·outer + r·along + i·inner. */
export interface Lines {
  readonly buffer: Buffer;
  readonly element: Element;
  readonly offset: number;
  readonly strides: readonly [outer: number, along: number, inner: number];
}

const at = (l: Lines, o: string, r: string, i: string): string =>
  [l.offset, ...[o, r, i].map((x, k) => (l.strides[k] === 1 ? x : `${x} * ${l.strides[k]}`))]
    .filter((_, k) => k === 0 || l.strides[k - 1] !== 0)
    .join(" + ");

/** Declares o, r and i of element e. */
const position = ({ n, inner }: Extent): string =>
  `    let o = e / ${n * inner}; let r = e / ${inner} % ${n}; let i = e % ${inner};`;

// ---- sort ------------------------------------------------------------------------------------------------------------

/** Runs that are sorted by counting; from there on they are merged. */
const RUN = 64;

/** Unsigned numbers that are in order as the elements are: NaN is the largest, the zeros are equal. */
const keyOf: Readonly<Record<Element, string>> = {
  f32: `fn key(x: f32) -> u32 {
  let b = bitcast<u32>(x);
  if ((b & 0x7fffffffu) > 0x7f800000u) { return 0xffffffffu; }
  if ((b & 0x7fffffffu) == 0u) { return 0x80000000u; }
  return select(b | 0x80000000u, ~b, b >= 0x80000000u);
}`,
  i32: "fn key(x: i32) -> u32 { return bitcast<u32>(x) ^ 0x80000000u; }",
  u32: "fn key(x: u32) -> u32 { return x; }",
};

/**
 * The stable order of each line, [outer, n, inner] of int32, into `out`. `spare` makes memory of the same size; it is
 * asked for only where runs are merged.
 */
export function argsort(x: Lines, size: Extent, descending: boolean, out: Buffer, spare: () => Buffer): Dispatch[] {
  const { outer, n, inner } = size;
  const total = outer * n * inner;
  const merges = Math.max(0, Math.ceil(Math.log2(n / RUN)));
  const other = merges > 0 ? spare() : out;
  // the last pass writes `out`
  const target = (pass: number): Buffer => ((merges - pass) % 2 === 0 ? out : other);
  const begin = (): { s: Shader; source: string } => {
    const s = new Shader();
    s.define(keyOf[x.element]);
    return { s, source: s.bind(x.buffer, x.element) };
  };
  const keyAt = (source: string, r: string): string => `${descending ? "~" : ""}key(${source}[${at(x, "o", r, "i")}])`;
  const orderAt = (r: string): string => `o * ${n * inner} + (${r}) * ${inner} + i`;
  const first = (): Dispatch => {
    const { s, source } = begin();
    const order = s.bind(target(0), "i32");
    return s.flat(
      total,
      `${position(size)}
    let own = ${keyAt(source, "r")};
    let start = r / ${RUN} * ${RUN};
    var place = start;
    for (var j = start; j < min(start + ${RUN}, ${n}); j++) {
      let k = ${keyAt(source, "j")};
      place += select(0, 1, k < own || (k == own && j < r));
    }
    ${order}[${orderAt("place")}] = r;`,
    );
  };
  const merge = (pass: number): Dispatch => {
    const width = RUN * 2 ** (pass - 1);
    const { s, source } = begin();
    const from = s.bind(target(pass - 1), "i32");
    const to = s.bind(target(pass), "i32");
    return s.flat(
      total,
      `${position(size)}
    let index = ${from}[${orderAt("r")}];
    let own = ${keyAt(source, "index")};
    let run = r / ${width};
    let start = (run ^ 1) * ${width};
    var low = min(start, ${n});
    var high = min(start + ${width}, ${n});
    let before = low;
    // how many of the other run come before this one: of equals, those of the left run do
    while (low < high) {
      let middle = (low + high) / 2;
      let there = ${from}[${orderAt("middle")}];
      let k = ${keyAt(source, "there")};
      if (k < own || (k == own && run % 2 == 1)) { low = middle + 1; } else { high = middle; }
    }
    ${to}[${orderAt(`(run & ~1) * ${width} + r % ${width} + low - before`)}] = index;`,
    );
  };
  return [first(), ...Array.from({ length: merges }, (_, p) => merge(p + 1))];
}

// ---- running sums ------------------------------------------------------------------------------------------------------

export type PrefixOp = "add" | "mul" | "max";

const combine = (op: PrefixOp, element: Element, a: string, b: string): string =>
  op === "add" ? `${a} + ${b}` : op === "mul" ? `${a} * ${b}` : `${element === "f32" ? "f_max" : "max"}(${a}, ${b})`;

/** Up to so long, a line is one invocation's. */
const SHORT = 1024;

/** Each element with all before it in its line; of long lines, chunks are summed, then their sums, then all. */
export function prefix(
  x: Lines,
  size: Extent,
  op: PrefixOp,
  out: Buffer,
  spare: (count: number) => Buffer,
): Dispatch[] {
  const { outer, n, inner } = size;
  const { element } = x;
  const lines = outer * inner;
  const outAt = (r: string): string => `o * ${n * inner} + ${r} * ${inner} + i`;
  if (n <= SHORT || lines >= 4096) {
    const s = new Shader();
    const [source, target] = [s.bind(x.buffer, element), s.bind(out, element)];
    return [
      s.flat(
        lines,
        `    let o = e / ${inner}; let i = e % ${inner};
    var sum = ${source}[${at(x, "o", "0", "i")}];
    ${target}[${outAt("0")}] = sum;
    for (var r = 1; r < ${n}; r++) {
      sum = ${combine(op, element, "sum", `${source}[${at(x, "o", "r", "i")}]`)};
      ${target}[${outAt("r")}] = sum;
    }`,
      ),
    ];
  }
  const chunk = Math.ceil(Math.sqrt(n));
  const chunks = Math.ceil(n / chunk);
  const sums = spare(lines * chunks);
  const chunkOf = `    let o = e / ${chunks * inner}; let q = e / ${inner} % ${chunks}; let i = e % ${inner};`;
  const within = (text: string): string =>
    `    for (var r = q * ${chunk} + 1; r < min(q * ${chunk} + ${chunk}, ${n}); r++) {\n${text}\n    }`;
  const a = new Shader();
  const [aFrom, aTo] = [a.bind(x.buffer, element), a.bind(sums, element)];
  const sumAt = (q: string): string => `(o * ${chunks} + ${q}) * ${inner} + i`;
  const parts = a.flat(
    lines * chunks,
    `${chunkOf}
    var sum = ${aFrom}[${at(x, "o", `q * ${chunk}`, "i")}];
${within(`      sum = ${combine(op, element, "sum", `${aFrom}[${at(x, "o", "r", "i")}]`)};`)}
    ${aTo}[${sumAt("q")}] = sum;`,
  );
  const b = new Shader();
  const carry = b.bind(sums, element);
  const carries = b.flat(
    lines,
    `    let o = e / ${inner}; let i = e % ${inner};
    var sum = ${carry}[${sumAt("0")}];
    for (var q = 1; q < ${chunks}; q++) {
      sum = ${combine(op, element, "sum", `${carry}[${sumAt("q")}]`)};
      ${carry}[${sumAt("q")}] = sum;
    }`,
  );
  const c = new Shader();
  const [cFrom, cSums, cTo] = [c.bind(x.buffer, element), c.bind(sums, element), c.bind(out, element)];
  const all = c.flat(
    lines * chunks,
    `${chunkOf}
    var sum = ${cFrom}[${at(x, "o", `q * ${chunk}`, "i")}];
    if (q > 0) { sum = ${combine(op, element, `${cSums}[${sumAt("(q - 1)")}]`, "sum")}; }
    ${cTo}[${outAt(`(q * ${chunk})`)}] = sum;
${within(`      sum = ${combine(op, element, "sum", `${cFrom}[${at(x, "o", "r", "i")}]`)};
      ${cTo}[${outAt("r")}] = sum;`)}`,
  );
  return [parts, carries, all];
}

// ---- scatter -----------------------------------------------------------------------------------------------------------

export interface Scatter {
  readonly index: Lines;
  readonly source: Lines;
  /** What is written into; null: zeros. */
  readonly base: Buffer | null;
  readonly out: Buffer;
  /** [outer, size, inner] of the destination, and how many indices a line has. */
  readonly outer: number;
  readonly size: number;
  readonly inner: number;
  readonly count: number;
  readonly mode: "add" | "set" | "max";
  readonly firstCheck: number;
}

/** Up to so many indices a line, every destination looks at all of them. */
const FEW = 64;

/** The statement that takes the source at r into `sum`. */
function take({ source, mode }: Scatter, name: string): string {
  const value = `${name}[${at(source, "o", "r", "i")}]`;
  return `sum = ${mode === "set" ? value : combine(mode, source.element, "sum", value)};`;
}

/** `temporary` makes memory of so many 32-bit numbers. */
export function scatter(d: Scatter, temporary: (count: number) => Buffer): Dispatch[] {
  return d.count <= FEW ? [scatterFew(d)] : scatterSorted(d, temporary);
}

function scatterBody(d: Scatter, s: Shader): { begin: string; end: string; source: string } {
  const { element } = d.source;
  const base = d.base && s.bind(d.base, element);
  const source = d.count > 0 ? s.bind(d.source.buffer, element) : "";
  const out = s.bind(d.out, element);
  return {
    begin: `    let o = e / ${d.size * d.inner}; let j = e / ${d.inner} % ${d.size}; let i = e % ${d.inner};
    var sum = ${base ? `${base}[e]` : `${element}(0)`};`,
    end: `    ${out}[e] = sum;`,
    source,
  };
}

const checked = (d: Scatter): string => `if (bitcast<u32>(k) >= ${d.size}u) { fail(p[0].y, k); }`;

function scatterFew(d: Scatter): Dispatch {
  const s = new Shader();
  const { begin, end, source } = scatterBody(d, s);
  const index = d.count > 0 ? s.bind(d.index.buffer, "i32") : "";
  const loop = `    for (var r = 0; r < ${d.count}; r++) {
      let k = ${index}[${at(d.index, "o", "r", "i")}];
      ${checked(d)}
      if (k == j) { ${take(d, source)} }
    }`;
  return s.flat(d.outer * d.size * d.inner, `${begin}\n${d.count > 0 ? loop : ""}\n${end}`, {
    firstCheck: d.firstCheck,
  });
}

function scatterSorted(d: Scatter, temporary: (count: number) => Buffer): Dispatch[] {
  const { index, count } = d;
  // lines whose indices are the same are sorted once
  const size: Extent = {
    outer: index.strides[0] === 0 ? 1 : d.outer,
    n: count,
    inner: index.strides[2] === 0 ? 1 : d.inner,
  };
  const lines = size.outer * size.inner;
  const order = temporary(lines * count);
  const heads = temporary(lines * d.size);
  const sorting = argsort(index, size, false, order, () => temporary(lines * count));
  const [so, si] = [size.outer === 1 ? "0" : "o", size.inner === 1 ? "0" : "i"];
  const orderAt = (q: string): string => `(${so} * ${count} + ${q}) * ${size.inner} + ${si}`;
  const headAt = (j: string): string => `(${so} * ${d.size} + ${j}) * ${size.inner} + ${si}`;

  const none = new Shader();
  const clear = none.flat(lines * d.size, `    ${none.bind(heads, "i32")}[e] = -1;`);

  const h = new Shader();
  const [hOrder, hIndex, hHeads] = [h.bind(order, "i32"), h.bind(index.buffer, "i32"), h.bind(heads, "i32")];
  const find = h.flat(
    lines * count,
    `${position(size)}
    let mine = ${hOrder}[${orderAt("r")}];
    let k = ${hIndex}[${at(index, "o", "mine", "i")}];
    ${checked(d)}
    var isFirst = r == 0;
    if (!isFirst) {
      let before = ${hOrder}[${orderAt("(r - 1)")}];
      isFirst = ${hIndex}[${at(index, "o", "before", "i")}] != k;
    }
    if (isFirst && bitcast<u32>(k) < ${d.size}u) { ${hHeads}[${headAt("k")}] = r; }`,
    { firstCheck: d.firstCheck },
  );

  const s = new Shader();
  const { begin, end, source } = scatterBody(d, s);
  const [sOrder, sIndex, sHeads] = [s.bind(order, "i32"), s.bind(index.buffer, "i32"), s.bind(heads, "i32")];
  const gather = s.flat(
    d.outer * d.size * d.inner,
    `${begin}
    var q = ${sHeads}[${headAt("j")}];
    while (q >= 0 && q < ${count}) {
      let r = ${sOrder}[${orderAt("q")}];
      if (${sIndex}[${at(index, "o", "r", "i")}] != j) { break; }
      ${take(d, source)}
      q++;
    }
${end}`,
  );
  return [...sorting, clear, find, gather];
}
