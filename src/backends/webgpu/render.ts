/**
 * The WGSL renderer: a kernel as the text of one compute shader, sibling of cpu/render.ts. Four forms (forms.ts); values
 * are named constants, each emitted once in the outermost loop that it does not vary in. Reductions end in a tree over
 * workgroup memory whose pattern is fixed by the kernel's shape. Control flow around barriers depends on workgroup
 * numbers and constants only. Makes text and says what has to be bound; devices and buffers are not its business.
 */
import type { Kernel, Reduction, Stage, Store } from "../../compiler/kernel.ts";
import type { DType } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { type Check, Emitter, type WgslOptions } from "./emit.ts";
import { type Axis, type Form, MAX_GROUPS, offsetAlong } from "./forms.ts";
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
import { accumulatorLane, combine, finished, identity, narrowBits } from "./operations.ts";

export type { Check, WgslOptions };

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

class Renderer extends Emitter {
  private readonly workgroup = new Set<string>();
  private readonly workgroupSize: number;

  constructor(k: Kernel, options: WgslOptions) {
    super(k, options);
    this.workgroupSize = this.plan.form === "flat" ? this.plan.lanes : this.plan.lanes * this.plan.slots;
  }

  run(): RenderedWgsl {
    const { k, plan, options } = this;
    if (!import.meta.forBrowsers && !k.buffers.some((b) => b.written))
      throw new BackendError("webgpu: a kernel that writes nothing has no text; leave it out");
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

  private get usesSubgroups(): boolean {
    return this.options.subgroups && this.lines.some((l) => l.includes("subgroupShuffleXor"));
  }

  private bindings(): Binding[] {
    const out: Binding[] = [{ binding: 0, kind: "uniform", buffers: [] }];
    const groups = new Map<number, number[]>();
    for (const i of [...this.used].sort((a, b) => a - b))
      groups.set(this.home(i), [...(groups.get(this.home(i)) ?? []), i]);
    for (const buffers of groups.values()) out.push({ binding: out.length, kind: "buffer", buffers });
    if (this.hasFailure) out.push({ binding: out.length, kind: "failure", buffers: [] });
    const limit = this.options.maxStorageBuffers ?? MAX_STORAGE_BUFFERS;
    if (!import.meta.forBrowsers && out.length - 1 > limit) throw new TooManyBindings(out.length - 1, limit);
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
      this.storeAll(stage.stores);
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
    this.readAll(stage);
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
    this.line(`let lane = ${slots === 1 ? "l" : adjacent ? `l % ${lanes}` : `l / ${slots}`};`);
    this.line(`let slot = ${slots === 1 ? "0" : adjacent ? `l / ${lanes}` : `l % ${slots}`};`);
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
          this.readAll(stage);
          this.storeAll(stage.stores);
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
        // a state of a number a row: every lane has read the old one before lane 0 writes the new
        if (lanes > 1 && stage.rowStores.some((st) => this.isShared(st.buffer))) this.line("workgroupBarrier();");
        this.open("if (live && lane == 0)");
        this.storeAll(stage.rowStores);
        this.close();
      }
    });
  }

  /** Names every value of a pass: all is read before anything is written, as a state may be written over the old one. */
  private readAll(stage: Stage): void {
    for (const x of [...stage.stores, ...stage.reductions, ...stage.columns]) this.value(x.value);
  }

  private storeAll(stores: readonly Store[]): void {
    const names = stores.map((st) => this.value(st.value));
    stores.forEach((st, i) => {
      this.store(st.buffer, this.index(st.index), names[i]);
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
      this.readAll(stage);
      this.storeAll(stage.stores);
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
    if (!import.meta.forGpus && this.options.subgroups && near && lanes === this.options.lanes) {
      this.shuffle(trees);
      return;
    }
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
      const width = shuffled ? this.fresh("width") : "1";
      if (shuffled) this.line(`let ${width} = min(i32(subgroup), ${lanes});`);
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

  /** The same where the lanes of a position are a whole subgroup. */
  private shuffle(trees: readonly Tree[]): void {
    for (const t of trees) {
      let sum = t.from;
      for (let step = this.plan.lanes / 2; step >= 1; step /= 2) {
        const both = this.fresh("both");
        this.line(`let ${both} = ${combine(t.op, t.dtype, sum, `subgroupShuffleXor(${sum}, ${step}u)`)};`);
        sum = both;
      }
      this.line(`let ${t.to} = ${finished(sum, t.dtype)};`);
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
}
