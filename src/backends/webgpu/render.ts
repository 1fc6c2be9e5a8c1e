/**
 * The WGSL renderer: a kernel as the text of one compute shader, sibling of cpu/render.ts. Four forms (forms.ts); values
 * are named constants, each emitted once in the outermost loop that it does not vary in. Reductions end in a tree over
 * workgroup memory whose pattern is fixed by the kernel's shape. Control flow around barriers depends on workgroup
 * numbers and constants only. Makes text and says what has to be bound; devices and buffers are not its business.
 */

import type { Index } from "../../compiler/index-expr.ts";
import {
  type Condition,
  type Kernel,
  type Reduction,
  runtimeValues,
  type Stage,
  type Store,
  type Value,
} from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Axis, type Form, MAX_GROUPS, offsetAlong, type Plan, planKernel, valuesOf } from "./forms.ts";
import {
  type Binding,
  laneOf,
  MAX_STORAGE_BUFFERS,
  packUniforms,
  perWord,
  TooManyBindings,
  typeOf,
  UNIFORM_HEAD,
  uniformWord,
} from "./layout.ts";
import { libraryFor } from "./library.ts";
import { accumulatorLane, combine, finished, identity, literal, narrowBits, operation } from "./operations.ts";

export interface WgslOptions {
  /** Whether the device has the feature shader-f16: float16 then lies in memory as f16. The bytes are the same. */
  readonly f16: boolean;
  /** Whether the device has the feature subgroups: long trees then end in shuffles. The bits are the same. */
  readonly subgroups: boolean;
  /** For each buffer of the kernel, the first buffer that is the same memory (a state written in place); default: none is. */
  readonly sharedWith?: readonly number[];
  /** Whether the kernel writes state, and so does nothing once the failure word is set. */
  readonly writesState?: boolean;
  /** Storage buffers that the device binds; MAX_STORAGE_BUFFERS if not given. */
  readonly maxStorageBuffers?: number;
}

/** What check k of a kernel looks at; it fails as operation firstCheck + k. */
export interface Check {
  readonly kind: "index" | "division";
  readonly extent: number;
}

export interface RenderedWgsl {
  readonly form: Form;
  /** The module's text; its entry point is `main`. */
  readonly source: string;
  readonly workgroupSize: number;
  /** Group 0, in order. Storage buffers are all read_write. */
  readonly bindings: readonly Binding[];
  readonly checks: readonly Check[];
  /** Parts that a reduction over rows leaves. */
  readonly blocks: number;
  /** Workgroups; `length` counts for a flat kernel of one row only. */
  readonly dispatch: (sizes: { readonly length: number }) => {
    readonly x: number;
    readonly y: number;
    readonly z: number;
  };
  /** The uniform buffer's words. */
  readonly uniforms: (values: {
    readonly length: number;
    readonly firstCheck: number;
    readonly scalars: ArrayLike<number>;
  }) => Uint32Array;
}

/** Positions are int32; this leaves room for the strides beyond the end. */
const MAX_POSITIONS = 2 ** 31 - 2 ** 27;
/** Bytes of accumulators that an invocation keeps by itself (WGSL allows 8,192 of variables). */
const PRIVATE_BYTES = 1024;
/** Trees over workgroup memory at once: 8 × 256 × 4 bytes of the 16 KiB that every device has. */
const TREES = 8;

/**
 * A kernel as WGSL.
 * @throws {TooManyBindings} if it needs more storage buffers than the device binds
 * @throws {BackendError} if it computes with float64, or with more positions than int32 holds
 */
export function renderWgsl(k: Kernel, options: WgslOptions): RenderedWgsl {
  return new Renderer(k, options).run();
}

/** A value reduced over lanes: its accumulator's name, and the name of its result. */
interface Tree {
  readonly op: Reduction["op"];
  readonly dtype: DType;
  readonly from: string;
  readonly to: string;
}

class Renderer {
  private readonly k: Kernel;
  private readonly options: WgslOptions;
  private readonly plan: Plan;
  private readonly lines: string[] = [];
  private readonly workgroup = new Set<string>();
  private readonly checks: Check[] = [];
  private indent = 1;
  /** Values that have a name at this point, innermost scope last. */
  private scopes: Map<string, string>[] = [new Map()];
  private stage = 0;
  private temporary = 0;
  /** Buffers whose single elements are changed by atomics. */
  private readonly atomic = new Set<number>();
  private readonly used = new Set<number>();
  private readonly storeOf = new Map<Value, Store>();
  private readonly workgroupSize: number;

  constructor(k: Kernel, options: WgslOptions) {
    this.k = k;
    this.options = options;
    this.plan = planKernel(k, (dtype) => this.isNarrow(dtype));
    this.workgroupSize = this.plan.form === "flat" ? this.plan.lanes : this.plan.lanes * this.plan.slots;
    for (const dtype of [...k.buffers.map((b) => b.dtype), ...k.scalars]) laneOf(dtype);
    this.findUses();
    for (const s of k.stages)
      for (const st of s.stores)
        if (st.value.kind === "op" || st.value.kind === "select") this.storeOf.set(st.value, st);
  }

  run(): RenderedWgsl {
    const { k, plan, options } = this;
    const bindings = this.bindings();
    if (plan.form === "flat") this.flat();
    else if (plan.form === "sums") this.sums();
    else this.rowWise();
    const parameters = [
      "@builtin(workgroup_id) group: vec3<u32>",
      "@builtin(num_workgroups) groups: vec3<u32>",
      "@builtin(local_invocation_index) local: u32",
    ];
    if (this.usesSubgroups)
      parameters.push("@builtin(subgroup_size) subgroup: u32", "@builtin(subgroup_invocation_id) own: u32");
    const body = this.lines.join("\n");
    const library = libraryFor(body);
    const declarations = bindings.map((b) => this.declare(b));
    const source = [
      ...(options.f16 ? ["enable f16;"] : []),
      ...(this.usesSubgroups ? ["enable subgroups;"] : []),
      ...(this.hasFailure ? ["struct Failure { operation: atomic<u32>, index: atomic<u32> }"] : []),
      ...declarations,
      ...[...this.workgroup].map((w) => `var<workgroup> ${w};`),
      ...(library ? [library] : []),
      `@compute @workgroup_size(${this.workgroupSize})`,
      `fn main(${parameters.join(", ")}) {`,
      body,
      "}",
      "",
    ].join("\n");
    return {
      form: plan.form,
      source,
      workgroupSize: this.workgroupSize,
      bindings,
      checks: this.checks,
      blocks: plan.blocks,
      dispatch: (sizes) => this.dispatch(sizes.length),
      uniforms: (values) => packUniforms(k.scalars, values),
    };
  }

  // ---- what is bound -----------------------------------------------------------------------------------------------

  /** Whether elements share words with their neighbours, so that stores have to be whole words or atomics. */
  private isNarrow(dtype: DType): boolean {
    return perWord(dtype) > 1 && !(dtype === "float16" && this.options.f16);
  }

  private get hasFailure(): boolean {
    return this.k.canFail || this.options.writesState === true;
  }

  private get usesSubgroups(): boolean {
    return this.options.subgroups && this.lines.some((l) => l.includes("subgroupShuffleXor"));
  }

  /** The buffer under whose name this one is bound. */
  private home(buffer: number): number {
    return this.options.sharedWith?.[buffer] ?? buffer;
  }

  private findUses(): void {
    const { k } = this;
    let largest = k.rows * k.columns;
    const see = (index: Index): void => {
      largest = Math.max(largest, index.max, -index.min);
    };
    for (const v of valuesOf(k)) {
      laneOf(v.dtype);
      if (v.kind === "load") this.used.add(v.slot);
      if (v.index) see(v.index);
    }
    const written = k.stages.flatMap((s) => [...s.stores, ...s.rowStores, ...s.columns]);
    for (const st of written) this.used.add(st.buffer);
    for (const s of k.stages) for (const st of [...s.stores, ...s.rowStores]) see(st.index);
    if (largest > MAX_POSITIONS)
      throw new BackendError(
        `webgpu: a kernel of ${k.rows} × ${k.columns} reaches position ${largest}, more than ${MAX_POSITIONS}; split the tensor`,
      );
    for (const s of k.stages) {
      for (const st of s.stores) if (this.plan.granule === 1) this.markAtomic(st.buffer);
      for (const st of [...s.rowStores, ...s.columns]) this.markAtomic(st.buffer);
    }
    k.buffers.forEach((b, i) => {
      const home = this.home(i);
      if (home !== i && k.buffers[home].dtype !== b.dtype)
        throw new BackendError(
          `webgpu: buffers ${home} and ${i} of a kernel share memory as ${k.buffers[home].dtype} and ${b.dtype}`,
        );
    });
  }

  private markAtomic(buffer: number): void {
    if (this.isNarrow(this.k.buffers[buffer].dtype)) this.atomic.add(this.home(buffer));
  }

  private bindings(): Binding[] {
    const out: Binding[] = [{ binding: 0, kind: "uniform", buffers: [] }];
    const groups = new Map<number, number[]>();
    for (const i of [...this.used].sort((a, b) => a - b))
      groups.set(this.home(i), [...(groups.get(this.home(i)) ?? []), i]);
    for (const buffers of groups.values()) out.push({ binding: out.length, kind: "buffer", buffers });
    if (this.hasFailure) out.push({ binding: out.length, kind: "failure", buffers: [] });
    const limit = this.options.maxStorageBuffers ?? MAX_STORAGE_BUFFERS;
    if (out.length - 1 > limit) throw new TooManyBindings(out.length - 1, limit);
    return out;
  }

  private declare({ binding, kind, buffers }: Binding): string {
    const at = `@group(0) @binding(${binding})`;
    if (kind === "uniform")
      return `${at} var<uniform> p: array<vec4<u32>, ${Math.ceil((UNIFORM_HEAD + this.k.scalars.length) / 4)}>;`;
    if (kind === "failure") return `${at} var<storage, read_write> failure: Failure;`;
    return `${at} var<storage, read_write> b${this.home(buffers[0])}: array<${this.elementType(buffers[0])}>;`;
  }

  /** The element type of a buffer's array. */
  private elementType(buffer: number): string {
    const { dtype } = this.k.buffers[buffer];
    if (this.atomic.has(this.home(buffer))) return "atomic<u32>";
    if (this.isNarrow(dtype)) return "u32";
    return dtype === "float16" ? "f16" : typeOf[laneOf(dtype)];
  }

  private dispatch(length: number): { x: number; y: number; z: number } {
    const { plan, k } = this;
    const groups = (n: number): number => Math.min(MAX_GROUPS, Math.ceil(n));
    if (plan.form === "flat")
      return {
        x: groups((k.rows === 1 ? length : k.rows * k.columns) / (this.workgroupSize * plan.granule)),
        y: 1,
        z: 1,
      };
    if (plan.form === "sums") return { x: groups(k.columns / plan.slots), y: groups(plan.blocks), z: 1 };
    return { x: groups(k.stages.some((s) => s.columns.length) ? plan.blocks : k.rows / plan.slots), y: 1, z: 1 };
  }

  // ---- the forms ---------------------------------------------------------------------------------------------------

  /** Nothing where state must stay as it is because something failed; all invocations of a workgroup agree. */
  private guard(): void {
    if (!this.options.writesState) return;
    if (this.plan.form === "flat") {
      this.line("if (atomicLoad(&failure.operation) != 0u) { return; }");
      return;
    }
    this.workgroup.add("failed: u32");
    this.line("if (local == 0u) { failed = atomicLoad(&failure.operation); }");
    this.line("if (workgroupUniformLoad(&failed) != 0u) { return; }");
  }

  private flat(): void {
    const { k, plan } = this;
    const [stage] = k.stages;
    const { granule: g } = plan;
    this.guard();
    this.line(`let n = ${k.rows === 1 ? `i32(${uniformWord(0)})` : k.rows * k.columns};`);
    this.uniforms(stage, 0);
    this.open(
      `for (var g = i32(group.x) * ${this.workgroupSize} + i32(local); g * ${g} < n; g += i32(groups.x) * ${this.workgroupSize})`,
    );
    const positions = (): void => {
      if (k.rows === 1) {
        this.line("let c = i;");
        return;
      }
      const length = plan.inner === "c" ? k.columns : k.rows;
      this.line(`let ${plan.outer} = i / ${length};`);
      this.line(`let ${plan.inner} = i - ${plan.outer} * ${length};`);
    };
    if (g === 1) {
      this.line("let i = g;");
      positions();
      for (const st of stage.stores) this.store(st.buffer, this.index(st.index), this.value(st.value));
    } else {
      this.words(
        stage,
        (_, j) => {
          this.line(`let i = g * ${g} + ${j};`);
          positions();
        },
        `min(${g}, n - g * ${g})`,
        (st) => `g * ${g} + ${offsetAlong(st.index, k, plan.inner)}`,
      );
    }
    this.close();
  }

  /** One granule: its elements one by one, the narrow ones gathered into words and stored at the end. */
  private words(
    stage: Stage,
    position: (stage: Stage, j: string) => void,
    count: string,
    first: (st: Store) => string,
  ): void {
    const { granule } = this.plan;
    const narrow = stage.stores.filter((st) => this.isNarrow(this.k.buffers[st.buffer].dtype));
    const per = (st: Store): number => perWord(this.k.buffers[st.buffer].dtype);
    for (const st of narrow) this.line(`var w${st.buffer} = array<u32, ${granule / per(st)}>();`);
    this.open(`for (var j = 0; j < ${count}; j++)`);
    position(stage, "j");
    for (const st of stage.stores) {
      const v = this.value(st.value);
      if (!narrow.includes(st)) {
        this.store(st.buffer, this.index(st.index), v);
        continue;
      }
      const { dtype } = this.k.buffers[st.buffer];
      this.line(
        `w${st.buffer}[j / ${per(st)}] |= (${narrowBits[dtype]?.to(v)}) << u32(j % ${per(st)} * ${32 / per(st)});`,
      );
    }
    this.accumulate(stage);
    this.close();
    for (const st of narrow)
      for (let w = 0; w < granule / per(st); w++) {
        const at = `(${first(st)}) / ${per(st)} + ${w}`;
        const store = `b${this.home(st.buffer)}[${at}] = w${st.buffer}[${w}];`;
        // a last, incomplete granule may not reach its second word
        this.line(w === 0 ? store : `if (${count} > ${w * per(st)}) { ${store} }`);
      }
  }

  /** Number of this invocation among the lanes of its position, and of its position in the workgroup. */
  private placeLanes(): void {
    const { form, lanes, slots } = this.plan;
    const adjacent = form === "columns";
    this.line("let l = i32(local);");
    this.line(`let lane = ${adjacent ? `l % ${lanes}` : `l / ${slots}`};`);
    this.line(`let slot = ${adjacent ? `l / ${lanes}` : `l % ${slots}`};`);
  }

  /** The loop variable of the parallel axis; positions past the end repeat the last one, not `live`. */
  private placeOuter(axis: Axis, end: string): void {
    this.line(`let live = o + slot < ${end};`);
    this.line(`let ${axis} = min(o + slot, ${end} - 1);`);
  }

  private rowWise(): void {
    const { k, plan } = this;
    const { lanes, slots, blocks, rowsPerBlock } = plan;
    const partials = k.stages.flatMap((s) => s.columns);
    this.guard();
    this.placeLanes();
    this.uniforms(k.stages[0], 0);
    if (partials.length === 0) {
      this.open(`for (var o = i32(group.x) * ${slots}; o < ${k.rows}; o += i32(groups.x) * ${slots})`);
      this.placeOuter("r", String(k.rows));
      this.rowStages();
      this.close();
      return;
    }
    this.open(`for (var block = i32(group.x); block < ${blocks}; block += i32(groups.x))`);
    this.line(`let last = min((block + 1) * ${rowsPerBlock}, ${k.rows});`);
    const steps = Math.ceil(k.columns / lanes);
    for (const x of partials) this.startPartial(x.buffer, x.op, steps);
    this.open(`for (var o = block * ${rowsPerBlock}; o < last; o += ${slots})`);
    this.placeOuter("r", "last");
    this.rowStages();
    this.close();
    for (const x of partials) this.endPartial(x.buffer, x.op, steps);
    this.close();
  }

  private rowStages(): void {
    const { k, plan } = this;
    const { lanes, granule } = plan;
    k.stages.forEach((stage, s) => {
      this.stage = s;
      this.startAccumulators(stage);
      if (stage.stores.length || stage.reductions.length || stage.columns.length) {
        this.uniforms(stage, 1);
        this.open(`for (var s = lane; s * ${granule} < select(0, ${k.columns}, live); s += ${lanes})`);
        if (granule === 1) {
          this.line("let c = s;");
          for (const st of stage.stores) this.store(st.buffer, this.index(st.index), this.value(st.value));
          this.accumulate(stage);
          for (const x of stage.columns) this.addPartial(x.buffer, x.op, this.value(x.value));
        } else {
          this.words(
            stage,
            (_, j) => this.line(`let c = s * ${granule} + ${j};`),
            String(granule),
            (st) => this.index(st.index).replace(/\bc\b/g, `s * ${granule}`),
          );
        }
        this.close();
      }
      this.reduce(stage.reductions.map((x) => ({ op: x.op, dtype: x.dtype, from: `a${x.slot}`, to: `x${x.slot}` })));
      if (stage.rowStores.length) {
        this.open("if (live && lane == 0)");
        for (const st of stage.rowStores) this.store(st.buffer, this.index(st.index), this.value(st.value));
        this.close();
      }
    });
  }

  private startAccumulators(stage: Stage): void {
    for (const x of stage.reductions) this.line(`var a${x.slot} = ${identity(x.op, x.dtype)};`);
  }

  private accumulate(stage: Stage): void {
    for (const x of stage.reductions)
      this.line(`a${x.slot} = ${combine(x.op, x.dtype, `a${x.slot}`, this.value(x.value))};`);
  }

  /** Only reductions over rows: lanes walk along r, neighbours lie along c. */
  private sums(): void {
    const { k, plan } = this;
    const { lanes, slots, blocks, rowsPerBlock } = plan;
    this.guard();
    this.placeLanes();
    this.uniforms(k.stages[0], 0);
    this.open(`for (var block = i32(group.y); block < ${blocks}; block += i32(groups.y))`);
    this.line(`let last = min((block + 1) * ${rowsPerBlock}, ${k.rows});`);
    this.open(`for (var o = i32(group.x) * ${slots}; o < ${k.columns}; o += i32(groups.x) * ${slots})`);
    this.placeOuter("c", String(k.columns));
    k.stages.forEach((stage, s) => {
      this.stage = s;
      for (const x of stage.columns) this.line(`var a${x.buffer} = ${identity(x.op, this.dtypeOf(x.buffer))};`);
      this.uniforms(stage, 1);
      this.open(`for (var r = block * ${rowsPerBlock} + lane; r < select(0, last, live); r += ${lanes})`);
      for (const st of stage.stores) this.store(st.buffer, this.index(st.index), this.value(st.value));
      for (const x of stage.columns)
        this.line(`a${x.buffer} = ${combine(x.op, this.dtypeOf(x.buffer), `a${x.buffer}`, this.value(x.value))};`);
      this.close();
      this.reduce(
        stage.columns.map((x) => ({
          op: x.op,
          dtype: this.dtypeOf(x.buffer),
          from: `a${x.buffer}`,
          to: `x${x.buffer}`,
        })),
      );
      this.open("if (live && lane == 0)");
      for (const x of stage.columns) this.store(x.buffer, `block * ${k.columns} + c`, `x${x.buffer}`);
      this.close();
    });
    this.close();
    this.close();
  }

  private dtypeOf(buffer: number): DType {
    return this.k.buffers[buffer].dtype;
  }

  // ---- reductions ----------------------------------------------------------------------------------------------------

  /**
   * Accumulators of lanes to one result that every lane of the position has: halves upon halves, lane 0 and lane
   * `lanes`/2 first. Shuffles pair the same lanes, so a device with subgroups finds the same bits.
   */
  private reduce(trees: readonly Tree[]): void {
    const { lanes, slots, form } = this.plan;
    if (lanes === 1) {
      for (const t of trees) this.line(`let ${t.to} = ${finished(t.from, t.dtype)};`);
      return;
    }
    const near = form === "columns";
    for (let from = 0; from < trees.length; from += TREES) {
      const some = trees.slice(from, from + TREES);
      const memory = some.map((t, i) => {
        const type = typeOf[accumulatorLane(t.dtype)];
        this.workgroup.add(`t${i}_${type}: array<${type}, ${this.workgroupSize}>`);
        return `t${i}_${type}`;
      });
      const partner = `l + step${near ? "" : ` * ${slots}`}`;
      const first = near ? (slots === 1 ? "0" : `slot * ${lanes}`) : "slot";
      const shuffled = this.options.subgroups && near && slots === 1;
      this.line("workgroupBarrier();"); // what an earlier tree left has been read
      some.forEach((t, i) => {
        this.line(`${memory[i]}[l] = ${t.from};`);
      });
      this.line("workgroupBarrier();");
      if (shuffled) this.line(`let width${this.temporary} = min(i32(subgroup), ${lanes});`);
      const width = shuffled ? `width${this.temporary++}` : "1";
      this.open(`for (var step = ${lanes / 2}; step >= ${width}; step /= 2)`);
      this.open("if (lane < step)");
      some.forEach((t, i) => {
        this.line(`${memory[i]}[l] = ${combine(t.op, t.dtype, `${memory[i]}[l]`, `${memory[i]}[${partner}]`)};`);
      });
      this.close();
      this.line("workgroupBarrier();");
      this.close();
      if (!shuffled) {
        some.forEach((t, i) => {
          this.line(`let ${t.to} = ${finished(`${memory[i]}[${first}]`, t.dtype)};`);
        });
        continue;
      }
      some.forEach((t, i) => {
        this.line(`var y${t.to} = ${memory[i]}[i32(own) % ${width}];`);
      });
      this.open(`for (var step = ${width} / 2; step > 0; step /= 2)`);
      for (const t of some)
        this.line(`y${t.to} = ${combine(t.op, t.dtype, `y${t.to}`, `subgroupShuffleXor(y${t.to}, u32(step))`)};`);
      this.close();
      for (const t of some) this.line(`let ${t.to} = ${finished(`y${t.to}`, t.dtype)};`);
    }
  }

  /** Whether an invocation keeps its accumulators of a reduction over rows to itself, rather than in the part's memory. */
  private isPrivate(steps: number): boolean {
    const partials = this.k.stages.flatMap((s) => s.columns).length;
    return steps * partials * 4 <= PRIVATE_BYTES;
  }

  private startPartial(buffer: number, op: Reduction["op"], steps: number): void {
    const dtype = this.dtypeOf(buffer);
    const { lanes } = this.plan;
    const { columns } = this.k;
    if (this.isPrivate(steps)) {
      this.line(`var q${buffer}: array<${typeOf[accumulatorLane(dtype)]}, ${steps}>;`);
      this.line(`for (var s = 0; s < ${steps}; s++) { q${buffer}[s] = ${identity(op, dtype)}; }`);
      return;
    }
    if (perWord(dtype) > 1)
      throw new BackendError(
        `webgpu: a sum over rows of ${columns} columns of ${dtype} beside other sums; cast to float32 first`,
      );
    this.line(
      `for (var s = lane; s < ${columns}; s += ${lanes}) { b${this.home(buffer)}[block * ${columns} + s] = ${identity(op, dtype)}; }`,
    );
  }

  private addPartial(buffer: number, op: Reduction["op"], v: string): void {
    const { columns } = this.k;
    const { lanes } = this.plan;
    const at = this.isPrivate(Math.ceil(columns / lanes))
      ? `q${buffer}[s / ${lanes}]`
      : `b${this.home(buffer)}[block * ${columns} + c]`;
    this.line(`${at} = ${combine(op, this.dtypeOf(buffer), at, v)};`);
  }

  private endPartial(buffer: number, op: Reduction["op"], steps: number): void {
    const { lanes, slots } = this.plan;
    const { columns } = this.k;
    if (!this.isPrivate(steps)) return;
    const dtype = this.dtypeOf(buffer);
    const type = typeOf[accumulatorLane(dtype)];
    this.open(`for (var s = 0; s < ${steps}; s++)`);
    let sum = `q${buffer}[s]`;
    if (slots > 1) {
      this.workgroup.add(`t0_${type}: array<${type}, ${this.workgroupSize}>`);
      this.line("workgroupBarrier();");
      this.line(`t0_${type}[l] = ${sum};`);
      this.line("workgroupBarrier();");
      this.open(`for (var step = ${slots / 2}; step > 0; step /= 2)`);
      sum = `t0_${type}[l]`;
      this.line(`if (slot < step) { ${sum} = ${combine(op, dtype, sum, `t0_${type}[l + step * ${lanes}]`)}; }`);
      this.line("workgroupBarrier();");
      this.close();
    }
    this.line(`let c = s * ${lanes} + lane;`);
    this.open(`if (slot == 0 && c < ${columns})`);
    this.line(`let sum = ${finished(sum, dtype)};`);
    this.store(buffer, `block * ${columns} + c`, "sum");
    this.close();
    this.close();
  }

  // ---- values ----------------------------------------------------------------------------------------------------

  /** 0: the same everywhere; 1: outside the inner loop; 2: inside it. A flat kernel has one loop. */
  private level(v: Value): number {
    const { form, outer, inner } = this.plan;
    if (v.varies(inner)) return 2;
    if (v.varies(outer)) return form === "flat" ? 2 : 1;
    return 0;
  }

  /** Emits, before a loop, the values of a stage that do not change in it. */
  private uniforms(stage: Stage, level: number): void {
    const seen = new Set<Value>();
    const visit = (v: Value): void => {
      if (seen.has(v) || this.find(String(v.id)) || this.reload(v)) return;
      seen.add(v);
      if (this.level(v) <= level) {
        if (v.stage <= this.stage) this.value(v);
        return;
      }
      for (const a of [...v.args, ...runtimeValues(v.index, v.valid)]) visit(a);
    };
    const stages = level === 0 ? this.k.stages : [stage];
    for (const s of stages)
      for (const x of [...s.stores, ...s.reductions, ...s.columns, ...(level === 0 ? s.rowStores : [])]) visit(x.value);
  }

  private find(key: string): string | undefined {
    for (let i = this.scopes.length - 1; i >= 0; i--) {
      const name = this.scopes[i].get(key);
      if (name !== undefined) return name;
    }
    return undefined;
  }

  /** A value that an earlier stage has stored whole is read back, by the invocation that stored it. */
  private reload(v: Value): Store | null {
    if (v.stage >= this.stage || v.cost < 2 || this.level(v) < 2) return null;
    const st = this.storeOf.get(v);
    return st && perWord(this.dtypeOf(st.buffer)) === 1 ? st : null;
  }

  /** The name of a value, emitting what it needs at this point. */
  private value(v: Value): string {
    const known = this.find(String(v.id));
    if (known !== undefined) return known;
    const again = this.reload(v);
    if (again) return this.define(v, `b${this.home(again.buffer)}[${this.index(again.index)}]`);
    const args = v.args.map((a) => this.value(a));
    for (const x of runtimeValues(v.index, v.valid)) this.value(x);
    return this.define(v, this.expression(v, args));
  }

  private define(v: Value, text: string): string {
    const name = this.scopes.length > 1 ? `v${v.id}_${this.scopes.length}` : `v${v.id}`;
    this.line(`let ${name}: ${typeOf[laneOf(v.dtype)]} = ${text};`);
    this.scopes[this.scopes.length - 1].set(String(v.id), name);
    return name;
  }

  private expression(v: Value, args: readonly string[]): string {
    switch (v.kind) {
      case "const":
        return literal(v.name, v.dtype);
      case "scalar": {
        const word = uniformWord(UNIFORM_HEAD + v.slot);
        const t = laneOf(v.dtype);
        return t === "m" ? `${word} != 0u` : t === "u" ? word : `bitcast<${typeOf[t]}>(${word})`;
      }
      case "reduced":
        return `x${v.slot}`;
      case "index":
        return this.index(v.index as Index);
      case "random":
        return `threefry(${args[0]}, ${args[1]}, u32(${this.index(v.index as Index)}))`;
      case "select":
        return `select(${args[1]}, ${args[0]}, ${this.conditions(v.valid)})`;
      case "load":
        return this.load(v);
      default:
        if ((v.name === "idiv" || v.name === "mod") && laneOf(v.dtype) !== "f") this.checkDivision(v, args[1]);
        return operation(v, args);
    }
  }

  // ---- positions ---------------------------------------------------------------------------------------------------

  /** An index as an i32 expression. `guard` says where a run-time index in it has to be right. */
  private index(i: Index, guard = ""): string {
    const parts: string[] = [];
    for (const { atom, coefficient } of i.terms) {
      let a: string;
      if (atom.kind === "axis") a = atom.name;
      else if (atom.kind === "value") a = this.checkedIndex(atom.value as Value, atom.extent, guard);
      else if (atom.kind === "bounded") a = `(${this.index(atom.of, guard)})`;
      else a = `((${this.index(atom.of, guard)}) ${atom.kind === "div" ? "/" : "%"} ${atom.by})`;
      parts.push(coefficient === 1 ? a : `${a} * ${coefficient}`);
    }
    if (i.constant !== 0 || parts.length === 0) parts.push(String(i.constant));
    return parts.join(" + ");
  }

  /** A run-time index, held inside 0 … extent − 1; outside it the run has failed. */
  private checkedIndex(v: Value, extent: number, guard: string): string {
    const source = this.find(String(v.id));
    if (source === undefined) throw new BackendError("webgpu: a run-time index was used before it was emitted");
    const key = `${source} of ${extent} if ${guard}`;
    const known = this.find(key);
    if (known) return known;
    const name = `k${this.temporary++}`;
    this.line(`let ${name} = clamp(${source}, 0, ${extent - 1});`);
    this.line(
      `if (${guard ? `${guard} && ` : ""}${name} != ${source}) { fail(${this.check({ kind: "index", extent })}, ${source}); }`,
    );
    this.scopes[this.scopes.length - 1].set(key, name);
    return name;
  }

  private checkDivision(v: Value, divisor: string): void {
    const guard = v.valid.length ? `${this.conditions(v.valid)} && ` : "";
    this.line(
      `if (${guard}${divisor} == ${laneOf(v.dtype) === "u" ? "0u" : "0"}) { fail(${this.check({ kind: "division", extent: 0 })}, 0); }`,
    );
  }

  private check(check: Check): string {
    if (!this.hasFailure)
      throw new BackendError("webgpu: a kernel checks an index or a divisor but is not said to fail (Kernel.canFail)");
    let i = this.checks.findIndex((c) => c.kind === check.kind && c.extent === check.extent);
    if (i < 0) i = this.checks.push(check) - 1;
    return `${uniformWord(1)} + ${i}u`;
  }

  /** Conditions as one truth; run-time indices of later ones count where the earlier hold. */
  private conditions(conditions: readonly Condition[]): string {
    let all = "";
    for (const c of conditions) {
      const key = `${c.index.key} if ${all}`;
      let name = this.find(key);
      if (!name) {
        name = `i${this.temporary++}`;
        this.line(`let ${name} = ${this.index(c.index, all)};`);
        this.scopes[this.scopes.length - 1].set(key, name);
      }
      for (const part of [
        c.index.min < c.lo ? `${name} >= ${c.lo}` : "",
        c.index.max >= c.hi ? `${name} < ${c.hi}` : "",
      ])
        if (part) all = all ? `${all} && ${part}` : part;
    }
    return all ? `(${all})` : "true";
  }

  // ---- memory ------------------------------------------------------------------------------------------------------

  private load(v: Value): string {
    const t = laneOf(v.dtype);
    if (v.valid.length === 0) return this.element(v.slot, this.index(v.index as Index));
    const inside = this.conditions(v.valid);
    const at = this.index(v.index as Index, inside);
    const name = `t${this.temporary++}`;
    this.line(`var ${name}: ${typeOf[t]};`);
    this.open(`if ${inside === "true" ? "(true)" : inside}`);
    this.line(`${name} = ${this.element(v.slot, at)};`);
    this.close();
    return name;
  }

  /** The value of one element of a buffer. */
  private element(buffer: number, at: string): string {
    const dtype = this.dtypeOf(buffer);
    const b = `b${this.home(buffer)}`;
    if (!this.isNarrow(dtype)) return dtype === "float16" ? `f32(${b}[${at}])` : `${b}[${at}]`;
    const n = perWord(dtype);
    const i = `t${this.temporary++}`;
    this.line(`let ${i} = ${at};`);
    const word = this.atomic.has(this.home(buffer)) ? `atomicLoad(&${b}[${i} / ${n}])` : `${b}[${i} / ${n}]`;
    return narrowBits[dtype]?.from(`extractBits(${word}, u32(${i} % ${n} * ${32 / n}), ${32 / n}u)`) as string;
  }

  private store(buffer: number, at: string, v: string): void {
    const dtype = this.dtypeOf(buffer);
    const b = `b${this.home(buffer)}`;
    if (!this.isNarrow(dtype)) {
      this.line(`${b}[${at}] = ${dtype === "float16" ? `bitcast<vec2<f16>>(half_bits(${v})).x` : v};`);
      return;
    }
    const n = perWord(dtype);
    const i = `t${this.temporary++}`;
    this.line(`let ${i} = ${at};`);
    this.line(`let ${i}_by = u32(${i} % ${n} * ${32 / n});`);
    this.line(`atomicAnd(&${b}[${i} / ${n}], ~(${2 ** (32 / n) - 1}u << ${i}_by));`);
    this.line(`atomicOr(&${b}[${i} / ${n}], (${narrowBits[dtype]?.to(v)}) << ${i}_by);`);
  }

  private line(text: string): void {
    this.lines.push("  ".repeat(this.indent) + text);
  }

  private open(head: string): void {
    this.line(`${head} {`);
    this.indent++;
    this.scopes.push(new Map());
  }

  private close(): void {
    this.scopes.pop();
    this.indent--;
    this.line("}");
  }
}
