/**
 * Convolutions and their gradients for adapters that run a subgroup's lanes as one vector of a processor (see
 * matmul-lanes.ts): the same blocks of sums. A position's window is found once a tap, not once an element, as whole
 * divisions cost there what many multiplications do. What the three products are is conv.ts'.
 */
import type { Strided } from "../../compiler/views.ts";
import { convSizes, type Geometry } from "./conv.ts";
import { finishText, type Product, type ProductText } from "./matmul.ts";
import { laneBlocks, laneFinish } from "./matmul-lanes.ts";
import { along } from "./shader.ts";

const upTo = (n: number): number[] => [...Array(n).keys()];
const lines = (list: readonly string[]): string => list.map((x) => `      ${x}`).join("\n");
/** Blocks that keep a processor's cores busy. */
const ENOUGH = 16;

/** Whether row and column are within: without `&&`, each of which is a branch, and compiling takes very long with many. */
const inside = (y: string, height: number, x: string, width: number): string =>
  `(${y} >= 0) & (${y} < ${height}) & (${x} >= 0) & (${x} < ${width})`;

/** Loops over the blocks of a product of `rows` blocks of rows and `vectors` of columns, `parts` times. */
const overBlocks = (
  rows: { each: number; count: number },
  vectors: { each: number; count: number },
  parts: number,
  lanes: number,
  body: string,
): string =>
  `  let lane = i32(subgroupLane);
  for (var tile = i32(group.x); tile < ${rows.count * vectors.count * parts}; tile += i32(groups.x)) {
    let column0 = tile % ${vectors.count} * ${vectors.each * lanes} + lane;
    let row0 = tile / ${vectors.count} % ${rows.count} * ${rows.each};
    let zz = tile / ${vectors.count * rows.count};
${body}
  }`;

/** The convolution, and its input's gradient: a loop over taps around one over channels. */
export function laneConv(g: Geometry, p: Product, weight: Strided, lanes: number): ProductText {
  const { rows, vectors } = laneBlocks(p, lanes);
  const forward = g.kind === "conv";
  const [numbers, columns, depths] = [upTo(rows.each), upTo(vectors.each), upTo(lanes)];
  const [height, width] = forward ? [g.OH, g.OW] : [g.H, g.W]; // of the positions that are rows
  const [h, w, channels] = forward ? [g.H, g.W, g.Cin] : [g.OH, g.OW, g.Cout]; // of what is read
  const [own, deep] = forward ? [weight.strides[0], weight.strides[1]] : [weight.strides[1], weight.strides[0]];
  const [sy, sx] = g.stride;
  /** Row and column of what is read for tap (ky, kx), or a condition that there is none. */
  const tap = (r: number): string => {
    if (forward)
      return `let y${r} = py${r} + ky * ${g.dilation[0]}; let x${r} = px${r} + kx * ${g.dilation[1]}; let in${r} = ${inside(`y${r}`, h, `x${r}`, w)};`;
    const place = (v: string, s: number): string => (s === 1 ? `let ${v} = t${v};` : `let ${v} = t${v} / ${s};`);
    const met = [sy > 1 ? ` & (ty${r} % ${sy} == 0)` : "", sx > 1 ? ` & (tx${r} % ${sx} == 0)` : ""].join("");
    return `let ty${r} = py${r} - ky * ${g.dilation[0]}; let tx${r} = px${r} - kx * ${g.dilation[1]}; ${place(`y${r}`, sy)} ${place(`x${r}`, sx)} let in${r} = (ty${r} >= 0) & (tx${r} >= 0) & (y${r} < ${h}) & (x${r} < ${w})${met};`;
  };
  const start = (r: number): string => {
    const at = `let p${r} = min(row0 + ${r}, ${p.M - 1}); let n${r} = p${r} / ${height * width} * ${h};`;
    const [y, x] = [`p${r} / ${width} % ${height}`, `p${r} % ${width}`];
    return forward
      ? `${at} let py${r} = ${y} * ${sy} - ${g.low[0]}; let px${r} = ${x} * ${sx} - ${g.low[1]};`
      : `${at} let py${r} = ${y} + ${g.low[0]}; let px${r} = ${x} + ${g.low[1]};`;
  };
  const sum = (r: number, c: number): string => depths.map((q) => `x${r}_${q} * b${q}_${c}`).join(" + ");
  const read = (r: number, at: string): string => `select(0f, ${p.a.name}[a${r} + ${at}], in${r})`;
  const step = [
    ...depths.flatMap((q) => columns.map((c) => `let b${q}_${c} = ${p.b.name}[c${c} + w0 + (k + ${q}) * ${deep}];`)),
    ...numbers.flatMap((r) => [
      `let v${r} = ${read(r, "k + lane")};`,
      ...depths.map((q) => `let x${r}_${q} = subgroupBroadcast(v${r}, ${q}u);`),
    ]),
    ...numbers.flatMap((r) => columns.map((c) => `s${r}_${c} += ${sum(r, c)};`)),
  ];
  const rest = [
    ...columns.map((c) => `let b${c} = ${p.b.name}[c${c} + w0 + k * ${deep}];`),
    ...numbers.flatMap((r) => [`let e${r} = ${read(r, "k")};`, ...columns.map((c) => `s${r}_${c} += e${r} * b${c};`)]),
  ];
  const body = `${lines(numbers.map(start))}
${lines(columns.map((c) => `let c${c} = ${weight.offset} + min(column0 + ${c * lanes}, ${p.N - 1}) * ${own};`))}
${lines(numbers.flatMap((r) => columns.map((c) => `var s${r}_${c} = 0f;`)))}
    for (var ky = 0; ky < ${g.kernel[0]}; ky++) { for (var kx = 0; kx < ${g.kernel[1]}; kx++) {
      let w0 = ky * ${weight.strides[2]} + kx * ${weight.strides[3]};
${lines(numbers.map(tap))}
${lines(numbers.map((r) => `let a${r} = select(0, ((n${r} + y${r}) * ${w} + x${r}) * ${channels}, in${r});`))}
      var k = 0;
${channels < lanes ? "" : `      for (; k + ${lanes} <= ${channels}; k += ${lanes}) {\n${lines(step)}\n      }`}
${channels % lanes === 0 ? "" : `      for (; k < ${channels}; k++) {\n${lines(rest)}\n      }`}
    } }
${laneFinish(rows.each, vectors.each, lanes, "f32")}`;
  const text = overBlocks(rows, vectors, 1, lanes, body);
  return {
    body: text,
    functions: [finishText(p)],
    workgroup: [],
    size: lanes,
    groups: along(rows.count * vectors.count),
  };
}

/** In how many parts of lines of output positions the weight's gradient is computed. */
export function laneConvParts(g: Geometry, lanes: number): number {
  const { rows, vectors } = laneBlocks(convSizes(g), lanes);
  return Math.max(1, Math.min(g.batch * g.OH, Math.ceil(ENOUGH / (rows.count * vectors.count))));
}

/** The weight's gradient: lanes along taps and channels in, a loop over the output's positions, two at a time. */
export function laneConvWeight(g: Geometry, p: Product, parts: number, lanes: number): ProductText {
  const { rows, vectors } = laneBlocks(p, lanes);
  const [numbers, columns] = [upTo(rows.each), upTo(vectors.each)];
  const all = g.batch * g.OH;
  const each = Math.ceil(all / parts);
  const packs = upTo(Math.ceil(rows.each / lanes));
  const both = g.OW > 1 ? [0, 1] : [0];
  const start = (c: number): string =>
    `let j${c} = min(column0 + ${c * lanes}, ${p.N - 1}); let t${c} = j${c} / ${g.Cin}; let ci${c} = j${c} % ${g.Cin}; let ky${c} = t${c} / ${g.kernel[1]} * ${g.dilation[0]} - ${g.low[0]}; let kx${c} = t${c} % ${g.kernel[1]} * ${g.dilation[1]} - ${g.low[1]};`;
  const line = (c: number): string =>
    `let y${c} = oy + ky${c}; let in${c} = (y${c} >= 0) & (y${c} < ${g.H}); let l${c} = (n + select(0, y${c}, in${c})) * ${g.W * g.Cin} + ci${c};`;
  const position = (u: number): string[] => [
    ...columns.map(
      (c) =>
        `let x${u}_${c} = (ox + ${u}) * ${g.stride[1]} + kx${c}; let i${u}_${c} = in${c} & (x${u}_${c} >= 0) & (x${u}_${c} < ${g.W}); let b${u}_${c} = select(0f, ${p.b.name}[l${c} + select(0, x${u}_${c}, i${u}_${c}) * ${g.Cin}], i${u}_${c});`,
    ),
    ...packs.map((h) => `let v${u}_${h} = ${p.a.name}[at + ${u * g.Cout} + h${h}];`),
    ...numbers.map((r) => `let a${u}_${r} = subgroupBroadcast(v${u}_${Math.floor(r / lanes)}, ${r % lanes}u);`),
  ];
  const positions = (us: readonly number[]): string =>
    lines([
      `let at = (line * ${g.OW} + ox) * ${g.Cout};`,
      ...us.flatMap(position),
      ...numbers.flatMap((r) =>
        columns.map((c) => `s${r}_${c} += ${us.map((u) => `a${u}_${r} * b${u}_${c}`).join(" + ")};`),
      ),
    ]);
  const body = `    let end = min((zz + 1) * ${each}, ${all});
${lines(packs.map((h) => `let h${h} = min(row0 + ${h * lanes} + lane, ${p.M - 1});`))}
${lines(columns.map(start))}
${lines(numbers.flatMap((r) => columns.map((c) => `var s${r}_${c} = 0f;`)))}
    for (var line = zz * ${each}; line < end; line++) {
      let n = line / ${g.OH} * ${g.H};
      let oy = line % ${g.OH} * ${g.stride[0]};
${lines(columns.map(line))}
      var ox = 0;
      for (; ox + ${both.length} <= ${g.OW}; ox += ${both.length}) {
${positions(both)}
      }
${g.OW % both.length === 0 ? "" : `      for (; ox < ${g.OW}; ox++) {\n${positions([0])}\n      }`}
    }
${laneFinish(rows.each, vectors.each, lanes, "f32")}`;
  const text = overBlocks(rows, vectors, parts, lanes, body);
  return {
    body: text,
    functions: [finishText(p)],
    workgroup: [],
    size: lanes,
    groups: along(rows.count * vectors.count * parts),
  };
}
