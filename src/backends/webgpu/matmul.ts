/**
 * Products [batch…, M, K] × [batch…, K, N] of strided operands as WGSL: register-blocked tiles over workgroup memory;
 * for few rows or columns, lanes along the long axis and along K. Long sums of few tiles are split, the parts added in
 * order. All is fixed by shape, so results have the same bits in every run. What follows a product (`finish`) is text of
 * the caller's. Which node is a product, and with what memory, is templates.ts'.
 */
import { along, type Groups } from "./shader.ts";

/** A look at memory: element offset, and strides of the batch axes, then of rows and columns. */
export interface Matrix {
  readonly name: string;
  readonly offset: number;
  readonly strides: readonly number[];
  /** A function of the text that reads element (row or column, depth), where strides can't tell. */
  readonly read?: string;
}

export interface Sizes {
  readonly batch: readonly number[];
  readonly M: number;
  readonly N: number;
  readonly K: number;
}

export interface Product extends Sizes {
  readonly a: Matrix;
  readonly b: Matrix;
  readonly element: "f32" | "i32";
  /** What is done with a finished sum `x` of row `row`, column `column` and batch `z`. */
  readonly finish: string;
}

export interface ProductText {
  readonly body: string;
  readonly functions: readonly string[];
  readonly workgroup: readonly string[];
  readonly size: number;
  readonly groups: Groups;
}

/** Tiles that keep a GPU busy, and the least part of a sum that is worth a workgroup of its own. */
const ENOUGH_TILES = 96;
const LEAST_PART = 256;
/** Up to so many rows or columns, tiles would be mostly empty. */
const SKINNY = 4;

export const product = (list: readonly number[]): number => list.reduce((n, x) => n * x, 1);

interface Tile {
  /** Rows and columns of a workgroup's tile, of an invocation's part of it, and the depth that is loaded at once. */
  readonly rows: number;
  readonly columns: number;
  readonly height: number;
  readonly width: number;
  readonly depth: number;
}

const LARGE: Tile = { rows: 64, columns: 64, height: 8, width: 8, depth: 16 };
const SMALL: Tile = { rows: 32, columns: 32, height: 8, width: 4, depth: 16 };

const tilesOf = (p: Sizes, t: Tile): number => product(p.batch) * Math.ceil(p.M / t.rows) * Math.ceil(p.N / t.columns);

function tileFor(p: Sizes): Tile {
  return p.M <= 32 || p.N <= 32 || tilesOf(p, LARGE) < ENOUGH_TILES / 4 ? SMALL : LARGE;
}

export const isSkinny = (p: { readonly M: number; readonly N: number }): boolean => p.M <= SKINNY || p.N <= SKINNY;

/** In how many parts of K a product is computed; more than one leaves parts [part, batch…, M, N]. */
export function partsOf(p: Sizes): number {
  if (isSkinny(p)) return 1;
  const tiles = tilesOf(p, tileFor(p));
  return Math.max(1, Math.min(16, Math.floor(p.K / LEAST_PART), Math.floor(ENOUGH_TILES / tiles)));
}

/** The offset of batch `z` in a matrix, as text. */
export function batchOffset(batch: readonly number[], m: Matrix): string {
  const terms: string[] = [String(m.offset)];
  let below = 1;
  for (let i = batch.length - 1; i >= 0; i--) {
    const at = below === 1 ? "z" : `z / ${below}`;
    if (m.strides[i] !== 0 && batch[i] > 1) terms.push(`${at} % ${batch[i]} * ${m.strides[i]}`);
    below *= batch[i];
  }
  return terms.join(" + ");
}

const times = (name: string, stride: number): string => (stride === 1 ? name : `${name} * ${stride}`);

/**
 * Four neighbours along the tile's own axis at one depth, for workgroup memory; neighbouring invocations are neighbours
 * in memory where the strides allow it.
 */
function loadText(p: Product, t: Tile, what: "a" | "b"): string {
  const m = p[what];
  const n = m.strides.length;
  const isA = what === "a";
  const [own, deep] = isA ? [m.strides[n - 2], m.strides[n - 1]] : [m.strides[n - 1], m.strides[n - 2]];
  const [extent, length] = isA ? [p.M, t.rows] : [p.N, t.columns];
  const quads = length / 4;
  const slots = quads * t.depth;
  const threads = (t.rows / t.height) * (t.columns / t.width);
  const split =
    deep === 1 && own !== 1
      ? `let q = s / ${t.depth}; let k = s % ${t.depth};`
      : `let k = s / ${quads}; let q = s % ${quads};`;
  const whole = p.K % t.depth === 0;
  const element = (i: number): string => {
    const at = extent % length === 0 ? `first + ${i}` : `min(first + ${i}, ${extent - 1})`;
    if (m.read) return `${m.read}(${at}, kk)`;
    return `${m.name}[${what}0 + ${times(`(${at})`, own)} + ${times("kk", deep)}]`;
  };
  const zero = `vec4<${p.element}>()`;
  return `    for (var s = i32(local); s < ${slots}; s += ${threads}) {
      ${split}
      let first = ${isA ? "row" : "column"}0 + q * 4;
      let kk = k0 + k;
      var v = ${zero};
      ${whole ? "" : "if (kk < kEnd) "}{ v = vec4<${p.element}>(${[0, 1, 2, 3].map(element).join(", ")}); }
      t${what}[k * ${quads} + q] = v;
    }`;
}

function tiled(p: Product, parts: number): ProductText {
  const t = tileFor(p);
  const [down, across] = [Math.ceil(p.M / t.rows), Math.ceil(p.N / t.columns)];
  const threadsX = t.columns / t.width;
  const size = (t.rows / t.height) * threadsX;
  const tiles = tilesOf(p, t) * parts;
  const each = Math.ceil(Math.ceil(p.K / parts) / t.depth) * t.depth;
  const [highs, wides] = [t.height / 4, t.width / 4];
  const acc = (i: number, w: number): string => `s${i}_${w}`;
  const vector = `vec4<${p.element}>`;
  const rows = [...Array(t.height).keys()];
  const columns = [...Array(wides).keys()];
  const multiply = [
    ...[...Array(highs).keys()].map((h) => `      let a${h} = ta[k * ${t.rows / 4} + ty * ${highs} + ${h}];`),
    ...columns.map((w) => `      let b${w} = tb[k * ${t.columns / 4} + tx * ${wides} + ${w}];`),
    ...rows.flatMap((i) => columns.map((w) => `      ${acc(i, w)} += a${i >> 2}.${"xyzw"[i & 3]} * b${w};`)),
  ].join("\n");
  // the sums are copied to be indexed: the loop above must keep them in registers
  const results = `    var sums = array<${vector}, ${t.height * wides}>(${rows.flatMap((i) => columns.map((w) => acc(i, w))).join(", ")});
    for (var i = 0; i < ${t.height}; i++) {
      for (var j = 0; j < ${t.width}; j++) {
        finish(row0 + ty * ${t.height} + i, column0 + tx * ${t.width} + j, zz, sums[i * ${wides} + j / 4][j % 4]);
      }
    }`;
  const body = `  let tx = i32(local) % ${threadsX};
  let ty = i32(local) / ${threadsX};
  for (var tile = i32(group.x); tile < ${tiles}; tile += i32(groups.x)) {
    let column0 = tile % ${across} * ${t.columns};
    let row0 = tile / ${across} % ${down} * ${t.rows};
    let zz = tile / ${across * down};
    let z = zz % ${product(p.batch)};
    let kBegin = zz / ${product(p.batch)} * ${each};
    let kEnd = min(kBegin + ${each}, ${p.K});
    let a0 = ${batchOffset(p.batch, p.a)};
    let b0 = ${batchOffset(p.batch, p.b)};
${rows.flatMap((i) => columns.map((w) => `    var ${acc(i, w)} = ${vector}();`)).join("\n")}
    for (var k0 = kBegin; k0 < kEnd; k0 += ${t.depth}) {
${loadText(p, t, "a")}
${loadText(p, t, "b")}
    workgroupBarrier();
    for (var k = 0; k < ${t.depth}; k++) {
${multiply}
    }
    workgroupBarrier();
    }
${results}
  }`;
  return {
    body,
    functions: [finishText(p)],
    workgroup: [
      `ta: array<${vector}, ${(t.depth * t.rows) / 4}>`,
      `tb: array<${vector}, ${(t.depth * t.columns) / 4}>`,
    ],
    size,
    groups: along(tiles),
  };
}

/** What is done with a sum; positions outside of the matrix are none. */
export const finishText = (p: Product): string => `fn finish(row: i32, column: i32, z: i32, x: ${p.element}) {
  if (row >= ${p.M} || column >= ${p.N}) { return; }
  ${p.finish}
}`;

/**
 * Few rows (or, with the roles exchanged, few columns): an invocation sums every `lanesK`th product of one position of
 * the long axis, for all the rows at once; a tree over workgroup memory adds the lanes.
 */
function skinny(p: Product): ProductText {
  const swapped = p.M > SKINNY;
  const n = p.a.strides.length;
  const exchange = (m: Matrix): Matrix => ({
    ...m,
    strides: [...m.strides.slice(0, n - 2), m.strides[n - 1], m.strides[n - 2]],
  });
  const [few, long] = swapped ? [exchange(p.b), exchange(p.a)] : [p.a, p.b]; // [few, K] and [K, long]
  const [R, L] = swapped ? [p.N, p.M] : [p.M, p.N];
  const most = long.strides[n - 2] === 1 && long.strides[n - 1] !== 1 ? 8 : 64;
  const lanesL = Math.min(most, 2 ** Math.ceil(Math.log2(L)));
  const lanesK = Math.min(256 / lanesL, 2 ** Math.ceil(Math.log2(Math.max(1, p.K))));
  const size = lanesL * lanesK;
  const blocks = Math.ceil(L / lanesL);
  const total = product(p.batch) * blocks;
  const rows = [...Array(R).keys()];
  const alongK = most === 8 && lanesK > 1;
  const place = alongK
    ? `let lk = i32(local) % ${lanesK}; let ll = i32(local) / ${lanesK};`
    : `let ll = i32(local) % ${lanesL}; let lk = i32(local) / ${lanesL};`;
  const step = alongK ? 1 : lanesL;
  const tree = rows
    .map(
      (r) => `    tree[local] = s${r};
    workgroupBarrier();
    for (var step = ${lanesK >> 1}; step > 0; step /= 2) {
      if (lk < step) { tree[local] += tree[i32(local) + step * ${step}]; }
      workgroupBarrier();
    }
    if (lk == 0 && l < ${L}) { finish(${swapped ? `l, ${r}` : `${r}, l`}, z, tree[local]); }
    workgroupBarrier();`,
    )
    .join("\n");
  const fewAt = (r: number): string =>
    few.read
      ? `${few.read}(${r}, k)`
      : `${few.name}[f0 + ${r * few.strides[n - 2]} + ${times("k", few.strides[n - 1])}]`;
  const body = `  ${place}
  for (var block = i32(group.x); block < ${total}; block += i32(groups.x)) {
    let z = block / ${blocks};
    let l = block % ${blocks} * ${lanesL} + ll;
    let inside = min(l, ${L - 1});
    let f0 = ${batchOffset(p.batch, few)};
    let l0 = ${batchOffset(p.batch, long)} + ${times("inside", long.strides[n - 1])};
${rows.map((r) => `    var s${r} = ${p.element}(0);`).join("\n")}
    for (var k = lk; k < ${p.K}; k += ${lanesK}) {
      let w = ${long.read ? `${long.read}(inside, k)` : `${long.name}[l0 + ${times("k", long.strides[n - 2])}]`};
${rows.map((r) => `      s${r} += ${fewAt(r)} * w;`).join("\n")}
    }
${tree}
  }`;
  return {
    body,
    functions: [finishText(p)],
    workgroup: [`tree: array<${p.element}, ${size}>`],
    size,
    groups: along(total),
  };
}

/** The text of a product; of one in parts, `finish` gets z counted over part and batch. */
export const productText = (p: Product, parts: number): ProductText => (isSkinny(p) ? skinny(p) : tiled(p, parts));
