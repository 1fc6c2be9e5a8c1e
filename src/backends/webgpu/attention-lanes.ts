/**
 * Attention for adapters that run a subgroup's lanes as one vector of a processor (see matmul-lanes.ts), forward and
 * backward, without the table of scores: a subgroup has a block of queries (or keys) to itself. Scores have their lanes
 * along the other side, sums of rows along the width; what all lanes need is handed round by broadcasts. No workgroup
 * memory, no barriers. The mathematics, and GPUs', are in attention.ts.
 */
import type { Buffer } from "../../compiler/schedule.ts";
import { type Attention, type AttentionGradient, type Heads, innerProducts, LOW, Rows } from "./attention.ts";
import { along, type Dispatch, Shader } from "./shader.ts";

/** Rows that a subgroup has, and rows of the other side that it takes at a time: with more, compiling takes seconds. */
const ROWS = 8;
const OTHERS = 4;

const upTo = (n: number): number[] => [...Array(n).keys()];

/** The text of blocks of `R` rows against `C` vectors of `lanes` rows of the other side. */
class Block {
  readonly lanes: number;
  readonly R: number;
  readonly C: number;

  constructor(lanes: number, rows: number) {
    this.lanes = lanes;
    this.R = Math.min(ROWS, rows);
    this.C = Math.max(1, OTHERS / lanes);
  }

  get others(): number {
    return this.C * this.lanes;
  }

  each(text: (r: number) => string): string {
    return upTo(this.R).map(text).join("\n");
  }

  eachPair(text: (r: number, c: number) => string): string {
    return this.each((r) =>
      upTo(this.C)
        .map((c) => text(r, c))
        .join(" "),
    );
  }

  /** Loops over the blocks of every (batch, head); row r of a block is t{r}, clamped to the last. */
  loop(batches: number, heads: number, rows: number, body: string): { readonly body: string; readonly blocks: number } {
    const per = Math.ceil(rows / this.R);
    const blocks = batches * heads * per;
    const text = `  let lane = i32(subgroupLane);
  for (var block = i32(group.x); block < ${blocks}; block += i32(groups.x)) {
    let first = block % ${per} * ${this.R};
    let h = block / ${per} % ${heads};
    let b = block / ${per * heads};
${this.each((r) => `    let t${r} = min(first + ${r}, ${rows - 1});`)}
${body}
  }`;
    return { body: text, blocks };
  }

  /** Where the block's rows of a look begin: `name`0 …. */
  begin(name: string, look: Rows, head: string): string {
    return this.each((r) => `    let ${name}${r} = ${look.at("b", head, `t${r}`)};`);
  }

  /** Products of the block's rows, which begin at `a`0 …, and rows first + c · lanes + lane of the other side: `x`r_c. */
  dots(x: string, rows: Rows, a: string, others: Rows, head: string, first: string, end: number): string {
    const { lanes, C } = this;
    const depths = upTo(lanes);
    const at = (c: number): string => others.at("b", head, `min(${first} + ${c * lanes} + lane, ${end - 1})`);
    return `      ${upTo(C)
      .map((c) => `let ${x}at${c} = ${at(c)};`)
      .join(" ")}
${this.eachPair((r, c) => `var ${x}${r}_${c} = 0f;`)}
      for (var d = 0; d < ${rows.quads * 4}; d += ${lanes}) {
${depths.flatMap((q) => upTo(C).map((c) => `let o${q}_${c} = ${others.one(`${x}at${c}`, `d + ${q}`)};`)).join("\n")}
${this.each((r) => `let a${r} = ${rows.one(`${a}${r}`, "d + lane")}; ${depths.map((q) => `let a${r}_${q} = subgroupBroadcast(a${r}, ${q}u);`).join(" ")}`)}
${this.eachPair((r, c) => `${x}${r}_${c} += ${depths.map((q) => `a${r}_${q} * o${q}_${c}`).join(" + ")};`)}
      }`;
  }

  declare(sums: string, width: number): string {
    return `    var ${sums} = array<f32, ${(this.R * width) / this.lanes}>();`;
  }

  /** Adds to `sums`, lanes along the width, the other side's rows first …, row c · lanes + q times `w`r_c of lane q. */
  spread(sums: string, w: string, others: Rows, head: string, first: string, end: number, shrink?: string): string {
    const { lanes, R } = this;
    const vectors = (others.quads * 4) / lanes;
    const all = upTo(this.others);
    const weight = (r: number, j: number): string =>
      `subgroupBroadcast(${w}${r}_${Math.floor(j / lanes)}, ${j % lanes}u)`;
    const old = (r: number): string => `${sums}[i * ${R} + ${r}]`;
    const products = (r: number): string => all.map((j) => `${sums}w${r}_${j} * f${j}`).join(" + ");
    return `${this.each((r) => all.map((j) => `let ${sums}w${r}_${j} = ${weight(r, j)};`).join(" "))}
${all.map((j) => `let ${sums}at${j} = ${others.at("b", head, `min(${first} + ${j}, ${end - 1})`)};`).join(" ")}
      for (var i = 0; i < ${vectors}; i++) {
${all.map((j) => `let f${j} = ${others.one(`${sums}at${j}`, `i * ${lanes} + lane`)};`).join(" ")}
${this.each((r) => `${old(r)} = ${old(r)}${shrink ? ` * ${shrink}${r}` : ""} + (${products(r)});`)}
      }`;
  }

  /** Stores the block's rows that there are, each times `factor`. */
  store(sums: string, to: Rows, head: string, rows: number, factor: (r: number) => string): string {
    const vectors = (to.quads * 4) / this.lanes;
    return this.each(
      (r) => `    if (first + ${r} < ${rows}) {
      let at = ${to.at("b", head, `t${r}`)};
      for (var i = 0; i < ${vectors}; i++) { ${to.one("at", `i * ${this.lanes} + lane`)} = ${sums}[i * ${this.R} + ${r}]${factor(r)}; }
    }`,
    );
  }

  /** The value of all lanes together, in each of them. */
  across(name: string, combine: (a: string, b: string) => string): string {
    const lines: string[] = [];
    for (let step = this.lanes / 2; step >= 1; step /= 2)
      lines.push(`${name} = ${combine(name, `subgroupShuffleXor(${name}, ${step}u)`)};`);
    return lines.join(" ");
  }
}

/** Whether heads are whole vectors of lanes. */
export const fitsLanes = ({ D, Dv }: Attention, lanes: number): boolean =>
  lanes > 0 && D % lanes === 0 && Dv % lanes === 0;

/** o: [B, H, Tq, Dv] in any layout; lse: [B, H, Tq]. */
export function laneAttention(a: Attention, lanes: number, o: Heads, lse: Buffer): Dispatch[] {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal, scale } = a;
  const x = new Block(lanes, Tq);
  const s = new Shader();
  const [q, k, v, out] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv), new Rows(s, o, Dv)];
  const sums = s.bind(lse, "f32");
  const seen = (r: number, c: number): string => {
    const j = `j0 + ${c * lanes} + lane`;
    return `(${j} < ${Tk})${causal ? ` & (${j} <= t${r})` : ""}`;
  };
  const vectors = upTo(x.C);
  const { body, blocks } = x.loop(
    B,
    H,
    Tq,
    `    let g = h / ${H / Hkv};
${x.begin("q", q, "h")}
${x.declare("acc", Dv)}
${x.each((r) => `    var top${r} = ${LOW}; var sum${r} = 0f;`)}
    let end = ${causal ? `min(${Tk}, first + ${x.R})` : Tk};
    for (var j0 = 0; j0 < end; j0 += ${x.others}) {
${x.dots("x", q, "q", k, "g", "j0", Tk)}
${x.eachPair((r, c) => `let y${r}_${c} = select(${LOW}, x${r}_${c} * ${scale}f, ${seen(r, c)});`)}
${x.each((r) => `var most${r} = max(top${r}, ${vectors.map((c) => `y${r}_${c}`).reduce((m, y) => `max(${m}, ${y})`)}); ${x.across(`most${r}`, (m, n) => `max(${m}, ${n})`)}`)}
${x.eachPair((r, c) => `let e${r}_${c} = select(f_exp(y${r}_${c} - most${r}), 0f, y${r}_${c} == ${LOW});`)}
${x.each(
  (r) => `let shrink${r} = f_exp(top${r} - most${r}); top${r} = most${r};
      sum${r} = sum${r} * shrink${r} + (${vectors.map((c) => `e${r}_${c}`).join(" + ")});`,
)}
${x.spread("acc", "e", v, "g", "j0", Tk, "shrink")}
    }
${x.each((r) => `    ${x.across(`sum${r}`, (m, n) => `${m} + ${n}`)}`)}
${x.store("acc", out, "h", Tq, (r) => ` / sum${r}`)}
${x.each((r) => `    if (first + ${r} < ${Tq} && lane == 0) { ${sums}[(b * ${H} + h) * ${Tq} + t${r}] = top${r} + f_log(sum${r}); }`)}`,
  );
  return [s.build(body, lanes, along(blocks))];
}

export const laneAttentionBackward = (a: Attention, lanes: number, g: AttentionGradient): Dispatch[] => [
  innerProducts(a, g),
  queryGradient(a, lanes, g),
  keyGradient(a, lanes, g),
];

function queryGradient(a: Attention, lanes: number, g: AttentionGradient): Dispatch {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal, scale } = a;
  const x = new Block(lanes, Tq);
  const s = new Shader();
  const [q, k, v] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv)];
  const [out, dq] = [new Rows(s, g.gradient, Dv), new Rows(s, g.dq, D)];
  const [lse, inner] = [s.bind(g.lse, "f32"), s.bind(g.inner, "f32")];
  const weight = (r: number, c: number): string => {
    const j = `j0 + ${c * lanes} + lane`;
    const seen = `(${j} < ${Tk})${causal ? ` & (${j} <= t${r})` : ""}`;
    const p = `f_exp(x${r}_${c} * ${scale}f - top${r})`;
    return `let w${r}_${c} = select(0f, ${p} * (y${r}_${c} - mean${r}) * ${scale}f, ${seen});`;
  };
  const { body, blocks } = x.loop(
    B,
    H,
    Tq,
    `    let g = h / ${H / Hkv};
${x.begin("q", q, "h")}
${x.begin("o", out, "h")}
${x.each((r) => `    let row${r} = (b * ${H} + h) * ${Tq} + t${r}; let top${r} = ${lse}[row${r}]; let mean${r} = ${inner}[row${r}];`)}
${x.declare("acc", D)}
    let end = ${causal ? `min(${Tk}, first + ${x.R})` : Tk};
    for (var j0 = 0; j0 < end; j0 += ${x.others}) {
${x.dots("x", q, "q", k, "g", "j0", Tk)}
${x.dots("y", out, "o", v, "g", "j0", Tk)}
${x.eachPair(weight)}
${x.spread("acc", "w", k, "g", "j0", Tk)}
    }
${x.store("acc", dq, "h", Tq, () => "")}`,
  );
  return s.build(body, lanes, along(blocks));
}

function keyGradient(a: Attention, lanes: number, g: AttentionGradient): Dispatch {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal, scale } = a;
  const x = new Block(lanes, Tk);
  const s = new Shader();
  const [q, k, v] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv)];
  const out = new Rows(s, g.gradient, Dv);
  const [dk, dv] = [new Rows(s, g.dk, D), new Rows(s, g.dv, Dv)];
  const [lse, inner] = [s.bind(g.lse, "f32"), s.bind(g.inner, "f32")];
  const share = H / Hkv;
  const vectors = upTo(x.C);
  const weight = (r: number, c: number): string => {
    const i = `i0 + ${c * lanes} + lane`;
    const seen = `(${i} < ${Tq})${causal ? ` & (t${r} <= ${i})` : ""}`;
    return `let p${r}_${c} = select(0f, f_exp(x${r}_${c} * ${scale}f - top${c}), ${seen}); let w${r}_${c} = p${r}_${c} * (y${r}_${c} - mean${c}) * ${scale}f;`;
  };
  // queries before a block's first key see none of it
  const begin = causal ? `first / ${x.others} * ${x.others}` : "0";
  const { body, blocks } = x.loop(
    B,
    Hkv,
    Tk,
    `${x.begin("k", k, "h")}
${x.begin("v", v, "h")}
${x.declare("acck", D)}
${x.declare("accv", Dv)}
    for (var hq = h * ${share}; hq < h * ${share} + ${share}; hq++) {
    for (var i0 = ${begin}; i0 < ${Tq}; i0 += ${x.others}) {
${vectors.map((c) => `      let row${c} = (b * ${H} + hq) * ${Tq} + min(i0 + ${c * lanes} + lane, ${Tq - 1}); let top${c} = ${lse}[row${c}]; let mean${c} = ${inner}[row${c}];`).join("\n")}
${x.dots("x", k, "k", q, "hq", "i0", Tq)}
${x.dots("y", v, "v", out, "hq", "i0", Tq)}
${x.eachPair(weight)}
${x.spread("acck", "w", q, "hq", "i0", Tq)}
${x.spread("accv", "p", out, "hq", "i0", Tq)}
    }
    }
${x.store("acck", dk, "h", Tk, () => "")}
${x.store("accv", dv, "h", Tk, () => "")}`,
  );
  return s.build(body, lanes, along(blocks));
}
