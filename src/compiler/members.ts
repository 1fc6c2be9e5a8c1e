/**
 * Which nodes lie in memory: the fuser's first step. What is asked for, what opaque operations read, every reduction, and an
 * elementwise value that several readers would otherwise compute again at more cost than reading it. And what follows from
 * it: where a node's computation ends and memory begins, and how an opaque operation looks at it.
 */
import { dtypes } from "../core/dtype.ts";
import { contiguousStrides, sizeOf } from "../core/shape.ts";
import { reductions } from "./domain.ts";
import { costOf } from "./kernel.ts";
import type { GNode, Lowered } from "./lower.ts";
import { isView, type Strided, strided } from "./views.ts";

/** Operations that a kernel can't contain; the backend runs each by itself. `strided` ones read any strided operand. */
export interface OpaqueRule {
  readonly isOpaque: (n: GNode) => boolean;
  /** Whether operand i may be a strided view; else it is made contiguous. */
  readonly takesStrided: (n: GNode, operand: number, inMemory: (n: GNode) => boolean) => boolean;
  /** Whether operand i is not read at all. */
  readonly ignores: (n: GNode, operand: number) => boolean;
  /** Whether operand i, an operation that runs by itself as it is looked at, is not read: its own operands are, in its place. */
  readonly absorbs?: (n: GNode, operand: number, look: Strided) => boolean;
  /** Buffers that a kernel can have, if few: reads and writes together. */
  readonly maxBuffers?: number;
}

/** A value with several readers is stored if computing it again costs more than this: as a write and a read of it. */
const EXPENSIVE = 32;
const WHOLE = 256;
/** Elements from which on it matters how long a value stays: 16 MiB of float32. */
export const LARGE = 2 ** 22;

const ownCost = (n: GNode): number =>
  n.op === "random" ? 100 : isView(n) ? (n.op === "pad" || n.op === "concat" ? 1 : 0) : costOf(n.op);

const isWidening = (n: GNode): boolean =>
  n.op === "cast" && dtypes[n.inputs[0].dtype].bytes === 2 && dtypes[n.dtype].bytes > 2;

export class Members {
  private readonly lowered: Lowered;
  private readonly rule: OpaqueRule;
  private readonly fuse: boolean;
  private readonly members = new Set<GNode>();
  /** What the caller gets: results and new states. */
  readonly requested = new Set<GNode>();

  constructor(lowered: Lowered, rule: OpaqueRule, fuse: boolean) {
    this.lowered = lowered;
    this.rule = rule;
    this.fuse = fuse;
    this.choose();
  }

  has(n: GNode): boolean {
    return this.members.has(n);
  }

  /** Whether a read of `n` is a read of memory (or of the group's own value). */
  readonly isBoundary = (n: GNode): boolean =>
    this.members.has(n) || n.op === "buffer" || this.rule.isOpaque(n) || n.op === "output";

  private choose(): void {
    const { nodes, roots, assigns } = this.lowered;
    const want = (n: GNode): void => {
      if (n.op !== "buffer" && n.op !== "output" && !this.rule.isOpaque(n)) this.members.add(n);
    };
    for (const n of [...roots, ...assigns.map((a) => a.value)]) {
      this.requested.add(n);
      want(n);
    }
    for (const n of nodes) {
      if (n.op in reductions) want(n);
      // the source of few elements is computed where they are; of many, once
      if (n.op === "gather" && sizeOf(n.shape) > sizeOf(n.inputs[0].shape)) {
        const look = strided(n.inputs[0]);
        want(look ? look.source : n.inputs[0]);
      }
      if (!this.fuse && !this.rule.isOpaque(n) && !isView(n) && n.inputs.length) want(n);
    }
    // a view that one operation needs in memory is where another's look at memory ends, so look until nothing changes
    for (let before = -1; before !== this.members.size; ) {
      before = this.members.size;
      this.looks.clear();
      for (const n of nodes) if (this.rule.isOpaque(n)) for (const s of this.operandSources(n)) want(s);
    }
    // how often each node would be computed, and what that costs
    const uses = new Map<GNode, number>();
    for (let i = nodes.length - 1; i >= 0; i--) {
      const n = nodes[i];
      const through = isView(n) && !this.members.has(n) ? (uses.get(n) ?? 0) : 1;
      for (const input of new Set(n.inputs)) uses.set(input, (uses.get(input) ?? 0) + through);
    }
    // what computing a node takes from memory on: its operations and reads, each once, by the part of an element they cost
    const cones = new Map<GNode, ReadonlyMap<GNode, number>>();
    const coneOf = (n: GNode): ReadonlyMap<GNode, number> => {
      const cone = new Map<GNode, number>([[n, 1]]);
      // what is the same for many elements costs each of them a part
      const share = n.op === "expand" ? sizeOf(n.inputs[0].shape) / Math.max(1, sizeOf(n.shape)) : 1;
      for (const input of n.inputs)
        for (const [part, weight] of cones.get(input) as ReadonlyMap<GNode, number>)
          cone.set(part, Math.max(cone.get(part) ?? 0, weight * share));
      return cone;
    };
    const sums = new Set<GNode>();
    for (const n of nodes) {
      if (n.op === "const" || n.op === "scalar" || n.op === "iota") {
        cones.set(n, new Map());
        continue;
      }
      if (n.op === "buffer" || n.op === "output" || this.rule.isOpaque(n)) {
        cones.set(n, new Map([[n, 1]]));
        continue;
      }
      if (n.op === "add" && sizeOf(n.shape) >= LARGE) this.storeSums(n, cones, sums);
      const cone = this.readFew(n, cones, coneOf);
      let cost = 0;
      let reads = n.op === "gather" ? 1 : 0;
      for (const [part, weight] of cone) {
        if (part !== n && this.isBoundary(part)) reads += weight;
        else cost += weight * ownCost(part);
      }
      const again = reads > 0 && (cost > EXPENSIVE || reads > 2.5 || this.replacesProducts(n, cone));
      const stored = ((uses.get(n) ?? 0) > 1 && again) || cost > WHOLE;
      const [narrow] = n.inputs;
      if (stored && isWidening(n) && !isView(narrow) && !this.isBoundary(narrow)) {
        // as it is before it is widened, in half the memory
        this.members.add(narrow);
        cones.set(narrow, new Map([[narrow, 1]]));
        cones.set(n, coneOf(n));
        continue;
      }
      if (stored && !isView(n)) this.members.add(n);
      cones.set(n, this.members.has(n) ? new Map([[n, 1]]) : cone);
    }
  }

  /**
   * Of three large products and more that are added up (a gradient, chunk by chunk), each is added when it is there: else all would be held for whoever
   * reads the sum. `n` adds to a sum of two; `sums` are those that are stored for that.
   */
  private storeSums(n: GNode, cones: Map<GNode, ReadonlyMap<GNode, number>>, sums: Set<GNode>): void {
    const products = (x: GNode): number =>
      [...(cones.get(x)?.keys() ?? [])].filter((part) => part.op === "contract" || sums.has(part)).length;
    for (const [x, other] of [n.inputs, n.inputs.toReversed()]) {
      if (x.op !== "add" || this.members.has(x) || products(x) < 2 || products(other) === 0) continue;
      this.members.add(x);
      sums.add(x);
      cones.set(x, new Map([[x, 1]]));
    }
  }

  /**
   * Whether the results of products that `n` is made of take clearly more memory than `n`: a sum of two, or one rounded to 16 bits. Whoever
   * reads `n` later would keep them there, which else are gone when `n` is made.
   */
  private replacesProducts(n: GNode, cone: ReadonlyMap<GNode, number>): boolean {
    let bytes = 0;
    for (const [part, weight] of cone)
      if (part.op === "contract" && weight === 1) bytes += sizeOf(part.shape) * dtypes[part.dtype].bytes;
    return bytes > 1.5 * sizeOf(n.shape) * dtypes[isWidening(n) ? n.inputs[0].dtype : n.dtype].bytes;
  }

  /**
   * What computing `n` takes, by `coneOf`; where that would read more buffers than a kernel can have, inputs are put into
   * memory until it does not, the one that reads most first.
   */
  private readFew(
    n: GNode,
    cones: Map<GNode, ReadonlyMap<GNode, number>>,
    coneOf: (n: GNode) => ReadonlyMap<GNode, number>,
  ): ReadonlyMap<GNode, number> {
    const most = (this.rule.maxBuffers ?? Number.POSITIVE_INFINITY) - 1;
    const reads = (cone: ReadonlyMap<GNode, number>, self: GNode): number => {
      let count = 0;
      for (const part of cone.keys()) if (part !== self && this.isBoundary(part)) count++;
      return count;
    };
    for (;;) {
      const cone = coneOf(n);
      if (most === Number.POSITIVE_INFINITY || reads(cone, n) <= most) return cone;
      const [heavy] = n.inputs
        .map((x) => [x, reads(cones.get(x) as ReadonlyMap<GNode, number>, x)] as const)
        .sort((a, b) => b[1] - a[1])[0];
      const views: GNode[] = [];
      let x = heavy;
      while (isView(x) && x.op !== "pad" && x.op !== "concat" && !this.members.has(x)) {
        views.unshift(x);
        x = x.inputs[0];
      }
      if (this.isBoundary(x)) return cone; // nothing left to take apart
      this.members.add(x);
      cones.set(x, new Map([[x, 1]]));
      for (const v of views) cones.set(v, coneOf(v));
    }
  }

  readonly inMemory = (n: GNode): boolean => this.members.has(n);

  /** Operand i of an opaque operation as a look at memory: strided where the operation takes that, else contiguous. */
  look(n: GNode, i: number): Strided {
    let looks = this.looks.get(n);
    if (!looks) this.looks.set(n, (looks = []));
    if (!looks[i]) {
      const x = n.inputs[i];
      const look = this.rule.takesStrided(n, i, this.inMemory) ? strided(x, this.inMemory) : null;
      looks[i] = look ?? { source: x, offset: 0, strides: contiguousStrides(x.shape) };
    }
    return looks[i];
  }
  private readonly looks = new Map<GNode, Strided[]>();

  /** The nodes that an opaque operation reads from memory. */
  operandSources(n: GNode): GNode[] {
    return n.inputs.flatMap((_, i) => {
      if (this.rule.ignores(n, i)) return [];
      const absorbed = this.absorbed(n, i);
      return absorbed ? this.operandSources(absorbed) : [this.look(n, i).source];
    });
  }

  /** The operation whose operands are read in place of operand i. */
  absorbed(n: GNode, i: number): GNode | undefined {
    if (!this.rule.absorbs || i >= n.inputs.length) return undefined;
    const look = this.look(n, i);
    return this.rule.absorbs(n, i, look) ? look.source : undefined;
  }

  /** What the computation of `n` reads from memory, beyond leaves. */
  sources(n: GNode): Set<GNode> {
    const out = new Set<GNode>();
    const seen = new Set<GNode>();
    const stack = [...n.inputs];
    while (stack.length) {
      const s = stack.pop() as GNode;
      if (seen.has(s)) continue;
      seen.add(s);
      if (s.op === "buffer") continue;
      if (this.isBoundary(s)) out.add(s);
      else stack.push(...s.inputs);
    }
    return out;
  }

  leafReads(n: GNode): Set<GNode> {
    const out = new Set<GNode>();
    const seen = new Set<GNode>();
    const stack = [...n.inputs];
    while (stack.length) {
      const s = stack.pop() as GNode;
      if (seen.has(s)) continue;
      seen.add(s);
      if (s.op === "buffer") out.add(s);
      else if (!this.isBoundary(s)) stack.push(...s.inputs);
    }
    return out;
  }
}
