/**
 * Attention as WGSL, forward and backward, without the table of scores (Dao et al. 2022, FlashAttention): an invocation has a
 * query (or, for the gradients of keys and values, a key) in registers, tiles of the others pass through workgroup
 * memory, and the largest score and the sum of exponentials are kept as they come. Which node is attention, and with
 * what memory, is templates.ts'.
 */
import type { Buffer } from "../../compiler/schedule.ts";
import { along, type Dispatch, Shader, WORKGROUP } from "./shader.ts";

/** A look at [batch, head, time, width]. */
export interface Heads {
  readonly buffer: Buffer;
  readonly offset: number;
  readonly strides: readonly [batch: number, head: number, time: number, width: number];
}

export interface Attention {
  readonly B: number;
  readonly H: number;
  readonly Hkv: number;
  readonly Tq: number;
  readonly Tk: number;
  /** Width of queries and keys, and of values; whole vectors of four. */
  readonly D: number;
  readonly Dv: number;
  readonly causal: boolean;
  readonly scale: number;
  readonly q: Heads;
  readonly k: Heads;
  readonly v: Heads;
}

/** Widest head that fits an invocation's registers and the 16 KiB of workgroup memory that every device has. */
export const WIDEST = 128;
/** Rows of a tile in workgroup memory: two of them, of both widths, in less than 16 KiB. */
const tileOf = ({ D, Dv }: Attention): number => (D + Dv > WIDEST ? 8 : 16);
/** Below every score; what is not seen weighs 0 whatever it is. */
export const LOW = "-3.0e38f";

/** One look's text: where row (b, h, t) begins, and four of its numbers from there. */
export class Rows {
  private readonly name: string;
  private readonly look: Heads;
  readonly quads: number;
  constructor(s: Shader, look: Heads, width: number) {
    this.name = s.bind(look.buffer, "f32");
    this.look = look;
    this.quads = width / 4;
  }
  at(b: string, h: string, t: string): string {
    const [sb, sh, st] = this.look.strides;
    return `${this.look.offset} + ${b} * ${sb} + ${h} * ${sh} + ${t} * ${st}`;
  }
  /** Number d of the row that begins at `at`. */
  one(at: string, d: string): string {
    const step = this.look.strides[3];
    return `${this.name}[${at} + ${step === 1 ? d : `(${d}) * ${step}`}]`;
  }
  quad(at: string, d: string): string {
    return `vec4<f32>(${[0, 1, 2, 3].map((i) => this.one(at, `${d} * 4 + ${i}`)).join(", ")})`;
  }
  /** Statements that store a row of vectors, each times `factor`. */
  store(at: string, vectors: string, factor: string): string {
    const step = this.look.strides[3];
    const each = [0, 1, 2, 3].map((i) => `${this.name}[at + (d * 4 + ${i}) * ${step}] = x.${"xyzw"[i]};`).join(" ");
    return `{ let at = ${at}; for (var d = 0; d < ${this.quads}; d++) { let x = ${vectors}[d] * ${factor}; ${each} } }`;
  }
  /** Declares the row that begins at `at` as an array of vectors. */
  declare(name: string, at: string): string {
    return `var ${name}: array<vec4<f32>, ${this.quads}>;
    { let at = ${at}; for (var d = 0; d < ${this.quads}; d++) { ${name}[d] = ${this.quad("at", "d")}; } }`;
  }
  /** Statements that bring rows first … of one head into workgroup memory; rows past the end repeat the last. */
  fill(tile: string, rows: number, first: string, end: number, b: string, h: string): string {
    return `for (var e = i32(local); e < ${rows * this.quads}; e += ${WORKGROUP}) {
        let at = ${this.at(b, h, `min(${first} + e / ${this.quads}, ${end - 1})`)};
        let d = e % ${this.quads};
        ${tile}[e] = ${this.quad("at", "d")};
      }`;
  }
}

const zeros = (name: string, quads: number): string => `var ${name} = array<vec4<f32>, ${quads}>();`;
/** The product of a row of registers and row j of a tile. */
const dot = (name: string, row: string, tile: string, quads: number): string =>
  `var ${name}_ = vec4<f32>();
        for (var d = 0; d < ${quads}; d++) { ${name}_ += ${row}[d] * ${tile}[j * ${quads} + d]; }
        let ${name} = (${name}_.x + ${name}_.y) + (${name}_.z + ${name}_.w);`;

/** Loops over blocks of WORKGROUP rows of every (batch, head); `t` is the invocation's own row. */
const overRows = (blocks: number, heads: number, rows: number, body: string): string => {
  const per = Math.ceil(rows / WORKGROUP);
  return `  for (var block = i32(group.x); block < ${blocks}; block += i32(groups.x)) {
    let first = block % ${per} * ${WORKGROUP};
    let h = block / ${per} % ${heads};
    let b = block / ${per * heads};
    let t = first + i32(local);
    let own = min(t, ${rows - 1});
${body}
  }`;
};

/** o: [B, H, Tq, Dv] in any layout; lse: [B, H, Tq]. */
export function attention(a: Attention, o: Heads, lse: Buffer): Dispatch[] {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal } = a;
  const tile = tileOf(a);
  const s = new Shader();
  const [q, k, v, out] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv), new Rows(s, o, Dv)];
  const sums = s.bind(lse, "f32");
  s.workgroup(`tk: array<vec4<f32>, ${tile * k.quads}>`);
  s.workgroup(`tv: array<vec4<f32>, ${tile * v.quads}>`);
  const blocks = B * H * Math.ceil(Tq / WORKGROUP);
  const body = `    let g = h / ${H / Hkv};
    ${q.declare("q", q.at("b", "h", "own"))}
    ${zeros("acc", v.quads)}
    var top = ${LOW};
    var sum = 0f;
    let end = ${causal ? `min(${Tk}, first + ${WORKGROUP})` : Tk};
    for (var j0 = 0; j0 < end; j0 += ${tile}) {
      ${k.fill("tk", tile, "j0", Tk, "b", "g")}
      ${v.fill("tv", tile, "j0", Tk, "b", "g")}
      workgroupBarrier();
      var scores: array<f32, ${tile}>;
      var most = top;
      for (var j = 0; j < ${tile}; j++) {
        ${dot("x", "q", "tk", q.quads)}
        scores[j] = select(${LOW}, x * ${a.scale}f, j0 + j < ${Tk}${causal ? " && j0 + j <= t" : ""});
        most = max(most, scores[j]);
      }
      let shrink = f_exp(top - most);
      top = most;
      sum *= shrink;
      for (var d = 0; d < ${v.quads}; d++) { acc[d] *= shrink; }
      for (var j = 0; j < ${tile}; j++) {
        let e = select(f_exp(scores[j] - top), 0f, scores[j] == ${LOW});
        sum += e;
        for (var d = 0; d < ${v.quads}; d++) { acc[d] += e * tv[j * ${v.quads} + d]; }
      }
      workgroupBarrier();
    }
    if (t < ${Tq}) {
      ${out.store(out.at("b", "h", "t"), "acc", "(1f / sum)")}
      ${sums}[(b * ${H} + h) * ${Tq} + t] = top + f_log(sum);
    }`;
  return [s.build(overRows(blocks, H, Tq, body), WORKGROUP, along(blocks))];
}

export interface AttentionGradient {
  readonly o: Heads;
  readonly lse: Buffer;
  readonly gradient: Heads;
  readonly dq: Heads;
  readonly dk: Heads;
  readonly dv: Heads;
  /** Room for B × H × Tq numbers. */
  readonly inner: Buffer;
}

/** Σ dO·O a query; then the gradient of each query; then those of each key and value. */
export function attentionBackward(a: Attention, g: AttentionGradient): Dispatch[] {
  return [innerProducts(a, g), queryGradient(a, g), keyGradient(a, g)];
}

export function innerProducts({ B, H, Tq, Dv }: Attention, { o, gradient, inner }: AttentionGradient): Dispatch {
  const s = new Shader();
  const [out, d] = [new Rows(s, o, Dv), new Rows(s, gradient, Dv)];
  const to = s.bind(inner, "f32");
  return s.flat(
    B * H * Tq,
    `    let b = e / ${H * Tq}; let h = e / ${Tq} % ${H}; let t = e % ${Tq};
    let o0 = ${out.at("b", "h", "t")};
    let g0 = ${d.at("b", "h", "t")};
    var sum = vec4<f32>();
    for (var d = 0; d < ${out.quads}; d++) { sum += ${out.quad("o0", "d")} * ${d.quad("g0", "d")}; }
    ${to}[e] = (sum.x + sum.y) + (sum.z + sum.w);`,
  );
}

function queryGradient(a: Attention, g: AttentionGradient): Dispatch {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal } = a;
  const tile = tileOf(a);
  const s = new Shader();
  const [q, k, v] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv)];
  const [out, dq] = [new Rows(s, g.gradient, Dv), new Rows(s, g.dq, D)];
  const [lse, inner] = [s.bind(g.lse, "f32"), s.bind(g.inner, "f32")];
  s.workgroup(`tk: array<vec4<f32>, ${tile * k.quads}>`);
  s.workgroup(`tv: array<vec4<f32>, ${tile * v.quads}>`);
  const blocks = B * H * Math.ceil(Tq / WORKGROUP);
  const body = `    let g = h / ${H / Hkv};
    ${q.declare("q", q.at("b", "h", "own"))}
    ${out.declare("o", out.at("b", "h", "own"))}
    ${zeros("acc", q.quads)}
    let row = (b * ${H} + h) * ${Tq} + own;
    let top = ${lse}[row];
    let mean = ${inner}[row];
    let end = ${causal ? `min(${Tk}, first + ${WORKGROUP})` : Tk};
    for (var j0 = 0; j0 < end; j0 += ${tile}) {
      ${k.fill("tk", tile, "j0", Tk, "b", "g")}
      ${v.fill("tv", tile, "j0", Tk, "b", "g")}
      workgroupBarrier();
      for (var j = 0; j < ${tile}; j++) {
        ${dot("x", "q", "tk", q.quads)}
        ${dot("y", "o", "tv", v.quads)}
        let seen = j0 + j < ${Tk}${causal ? " && j0 + j <= t" : ""};
        let w = select(0f, f_exp(x * ${a.scale}f - top) * (y - mean) * ${a.scale}f, seen);
        for (var d = 0; d < ${q.quads}; d++) { acc[d] += w * tk[j * ${q.quads} + d]; }
      }
      workgroupBarrier();
    }
    if (t < ${Tq}) { ${dq.store(dq.at("b", "h", "t"), "acc", "1f")} }`;
  return s.build(overRows(blocks, H, Tq, body), WORKGROUP, along(blocks));
}

function keyGradient(a: Attention, g: AttentionGradient): Dispatch {
  const { B, H, Hkv, Tq, Tk, D, Dv, causal } = a;
  const tile = tileOf(a);
  const s = new Shader();
  const [q, k, v] = [new Rows(s, a.q, D), new Rows(s, a.k, D), new Rows(s, a.v, Dv)];
  const out = new Rows(s, g.gradient, Dv);
  const [dk, dv] = [new Rows(s, g.dk, D), new Rows(s, g.dv, Dv)];
  const [lse, inner] = [s.bind(g.lse, "f32"), s.bind(g.inner, "f32")];
  s.workgroup(`tq: array<vec4<f32>, ${tile * q.quads}>`);
  s.workgroup(`to: array<vec4<f32>, ${tile * v.quads}>`);
  const blocks = B * Hkv * Math.ceil(Tk / WORKGROUP);
  const share = H / Hkv;
  // queries before a block's first key see none of it
  const begin = causal ? `first / ${tile} * ${tile}` : "0";
  const body = `    ${k.declare("k", k.at("b", "h", "own"))}
    ${v.declare("v", v.at("b", "h", "own"))}
    ${zeros("acck", k.quads)}
    ${zeros("accv", v.quads)}
    for (var hq = h * ${share}; hq < h * ${share} + ${share}; hq++) {
      for (var i0 = ${begin}; i0 < ${Tq}; i0 += ${tile}) {
      ${q.fill("tq", tile, "i0", Tq, "b", "hq")}
      ${out.fill("to", tile, "i0", Tq, "b", "hq")}
      workgroupBarrier();
      for (var j = 0; j < ${tile}; j++) {
        let i = i0 + j;
        let row = (b * ${H} + hq) * ${Tq} + min(i, ${Tq - 1});
        ${dot("x", "k", "tq", k.quads)}
        ${dot("y", "v", "to", v.quads)}
        let seen = i < ${Tq}${causal ? " && t <= i" : ""};
        let p = select(0f, f_exp(x * ${a.scale}f - ${lse}[row]), seen);
        let w = p * (y - ${inner}[row]) * ${a.scale}f;
        for (var d = 0; d < ${k.quads}; d++) { acck[d] += w * tq[j * ${k.quads} + d]; }
        for (var d = 0; d < ${v.quads}; d++) { accv[d] += p * to[j * ${v.quads} + d]; }
      }
      workgroupBarrier();
      }
    }
    if (t < ${Tk}) {
      ${dk.store(dk.at("b", "h", "t"), "acck", "1f")}
      ${dv.store(dv.at("b", "h", "t"), "accv", "1f")}
    }`;
  return s.build(overRows(blocks, Hkv, Tk, body), WORKGROUP, along(blocks));
}
