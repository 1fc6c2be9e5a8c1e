/**
 * Products for adapters that run a subgroup's lanes as one vector of a processor (software ones: SwiftShader, lavapipe).
 * There a load and a barrier cost more than many multiplications, and workgroup memory is memory like any other. So a
 * subgroup works alone: its lanes lie along the columns, each has a block of sums in registers, and what all lanes need of
 * the rows is loaded once, as a vector along K (or along the rows), and handed round by broadcasts. GPUs have matmul.ts.
 */
import { batchOffset, finishText, type Matrix, type Product, type ProductText, product, type Sizes } from "./matmul.ts";
import { along } from "./shader.ts";

/** Most rows of a block, and most of its columns that one lane has. */
const ROWS = 8;
const COLUMNS = 8;
/** Blocks that keep a processor's cores busy, and the least part of a sum that is worth a block of its own. */
const ENOUGH_BLOCKS = 16;
const LEAST_PART = 256;

/** A dimension cut into equal pieces of at most `most`: the length of a piece, and their number. */
function cut(n: number, most: number): { readonly each: number; readonly count: number } {
  const each = Math.ceil(n / Math.ceil(n / most));
  return { each, count: Math.ceil(n / each) };
}

interface Blocks {
  /** Whether the lanes lie along the rows instead: the product's transpose is made. */
  readonly swapped: boolean;
  readonly rows: { readonly each: number; readonly count: number };
  /** In vectors of `lanes` columns. */
  readonly vectors: { readonly each: number; readonly count: number };
}

function blocksOf({ M, N }: { readonly M: number; readonly N: number }, lanes: number): Blocks {
  const blocks = (swapped: boolean): Blocks => {
    const [rows, columns] = swapped ? [N, M] : [M, N];
    return { swapped, rows: cut(rows, ROWS), vectors: cut(Math.ceil(columns / lanes), COLUMNS) };
  };
  // a vector of a block's columns costs its loads, whatever the number of rows, beside its multiplications
  const cost = ({ rows, vectors }: Blocks): number =>
    rows.count * vectors.count * vectors.each * (rows.each + 2) + rows.count * vectors.count * rows.each;
  const [straight, swapped] = [blocks(false), blocks(true)];
  return cost(swapped) < cost(straight) ? swapped : straight;
}

const countOf = (p: Sizes, lanes: number): number => {
  const { rows, vectors } = blocksOf(p, lanes);
  return product(p.batch) * rows.count * vectors.count;
};

/** In how many parts of K a product is computed; more than one leaves parts [part, batch…, M, N]. */
export const lanePartsOf = (p: Sizes, lanes: number): number =>
  Math.max(1, Math.min(16, Math.floor(p.K / LEAST_PART), Math.floor(ENOUGH_BLOCKS / countOf(p, lanes))));

const times = (name: string, stride: number): string => (stride === 1 ? name : `${name} * ${stride}`);

/** Rows as they are broadcast: vectors along K, a row each; or, where memory is contiguous so, along the rows. */
function rowTexts(rows: Matrix, R: number, last: number, lanes: number): { begin: string[]; load: string[] } {
  const n = rows.strides.length;
  const [own, deep] = [rows.strides[n - 2], rows.strides[n - 1]];
  const numbers = [...Array(R).keys()];
  const depths = [...Array(lanes).keys()];
  const single = numbers.map((r) => `let r${r} = a0 + ${times(`min(row0 + ${r}, ${last})`, own)};`);
  if (deep !== 1 && own === 1) {
    const vectors = [...Array(Math.ceil(R / lanes)).keys()];
    return {
      begin: [...single, ...vectors.map((h) => `let h${h} = a0 + min(row0 + ${h * lanes} + lane, ${last});`)],
      load: [
        ...depths.flatMap((q) =>
          vectors.map((h) => `let v${h}_${q} = ${rows.name}[h${h} + ${times(`(k + ${q})`, deep)}];`),
        ),
        ...numbers.flatMap((r) =>
          depths.map((q) => `let x${r}_${q} = subgroupBroadcast(v${Math.floor(r / lanes)}_${q}, ${r % lanes}u);`),
        ),
      ],
    };
  }
  return {
    begin: single,
    load: numbers.flatMap((r) => [
      `let v${r} = ${rows.name}[r${r} + ${times("(k + lane)", deep)}];`,
      ...depths.map((q) => `let x${r}_${q} = subgroupBroadcast(v${r}, ${q}u);`),
    ]),
  };
}

/** Blocks of a product whose lanes lie along the columns, whatever its shape. */
export const laneBlocks = (p: { readonly M: number; readonly N: number }, lanes: number): Omit<Blocks, "swapped"> => ({
  rows: cut(p.M, ROWS),
  vectors: cut(Math.ceil(p.N / lanes), COLUMNS),
});

/** What is done with a block's sums `s`row_column. */
export const laneFinish = (R: number, Q: number, lanes: number, element: string, swapped = false): string =>
  `    var sums = array<${element}, ${R * Q}>(${[...Array(R * Q).keys()].map((i) => `s${Math.floor(i / Q)}_${i % Q}`).join(", ")});
    for (var i = 0; i < ${R}; i++) {
      for (var j = 0; j < ${Q}; j++) {
        finish(${swapped ? `column0 + j * ${lanes}, row0 + i` : `row0 + i, column0 + j * ${lanes}`}, zz, sums[i * ${Q} + j]);
      }
    }`;

/** The text of a product for subgroups of `lanes`; of one in parts, `finish` gets z counted over part and batch. */
export function laneProductText(p: Product, parts: number, lanes: number): ProductText {
  const { swapped, rows, vectors } = blocksOf(p, lanes);
  const n = p.a.strides.length;
  const exchange = (m: Matrix): Matrix => ({
    ...m,
    strides: [...m.strides.slice(0, n - 2), m.strides[n - 1], m.strides[n - 2]],
  });
  const [a, b] = swapped ? [exchange(p.b), exchange(p.a)] : [p.a, p.b];
  const [M, N] = swapped ? [p.N, p.M] : [p.M, p.N];
  const [R, Q] = [rows.each, vectors.each];
  const batches = product(p.batch);
  const tiles = batches * rows.count * vectors.count * parts;
  // parts are whole vectors along K, so that only the last has a rest
  const each = Math.ceil(Math.ceil(p.K / parts) / lanes) * lanes;
  const numbers = [...Array(R).keys()];
  const columns = [...Array(Q).keys()];
  const depths = [...Array(lanes).keys()];
  const [bDeep, bOwn] = [b.strides[n - 2], b.strides[n - 1]];
  const row = rowTexts(a, R, M - 1, lanes);
  const sum = (r: number, c: number): string => depths.map((q) => `x${r}_${q} * b${q}_${c}`).join(" + ");
  const step = [
    ...depths.flatMap((q) => columns.map((c) => `let b${q}_${c} = ${b.name}[c${c} + ${times(`(k + ${q})`, bDeep)}];`)),
    ...row.load,
    ...numbers.flatMap((r) => columns.map((c) => `s${r}_${c} += ${sum(r, c)};`)),
  ];
  const aDeep = a.strides[n - 1];
  const rest = [
    ...columns.map((c) => `let b${c} = ${b.name}[c${c} + ${times("k", bDeep)}];`),
    ...numbers.flatMap((r) => [
      `let x${r} = ${a.name}[r${r} + ${times("k", aDeep)}];`,
      ...columns.map((c) => `s${r}_${c} += x${r} * b${c};`),
    ]),
  ];
  const lines = (list: readonly string[]): string => list.map((x) => `      ${x}`).join("\n");
  const body = `  let lane = i32(subgroupLane);
  for (var tile = i32(group.x); tile < ${tiles}; tile += i32(groups.x)) {
    let column0 = tile % ${vectors.count} * ${Q * lanes} + lane;
    let row0 = tile / ${vectors.count} % ${rows.count} * ${R};
    let zz = tile / ${vectors.count * rows.count};
    let z = zz % ${batches};
    let kBegin = zz / ${batches} * ${each};
    let kEnd = min(kBegin + ${each}, ${p.K});
    let a0 = ${batchOffset(p.batch, a)};
    let b0 = ${batchOffset(p.batch, b)};
${lines(row.begin)}
${lines(columns.map((c) => `let c${c} = b0 + ${times(`min(column0 + ${c * lanes}, ${N - 1})`, bOwn)};`))}
${lines(numbers.flatMap((r) => columns.map((c) => `var s${r}_${c} = ${p.element}();`)))}
    var k = kBegin;
    for (; k + ${lanes} <= kEnd; k += ${lanes}) {
${lines(step)}
    }
${p.K % lanes === 0 ? "" : `    for (; k < kEnd; k++) {\n${lines(rest)}\n    }\n`}\
${laneFinish(R, Q, lanes, p.element, swapped)}
  }`;
  return { body, functions: [finishText(p)], workgroup: [], size: lanes, groups: along(tiles) };
}
