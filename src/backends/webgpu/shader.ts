/**
 * A text written by hand (a product, a sort) as something to dispatch: what it binds, each memory once, as two writable
 * bindings may not overlap. The texts themselves are in the templates; kernels of the compiler come from render.ts.
 */
import type { Buffer } from "../../compiler/schedule.ts";
import type { DType } from "../../core/dtype.ts";
import { MAX_GROUPS } from "./forms.ts";
import { type BindingKind, packUniforms, UNIFORM_HEAD } from "./layout.ts";
import { libraryFor } from "./library.ts";

export type Element = "f32" | "i32" | "u32";

export interface Groups {
  readonly x: number;
  readonly y: number;
  readonly z: number;
}

/** One dispatch, before buffers have addresses. */
export interface Dispatch {
  readonly source: string;
  /** Kinds of the bindings in order; the first is the uniform buffer. */
  readonly kinds: readonly BindingKind[];
  /** The memory of those of kind buffer, in order. */
  readonly buffers: readonly Buffer[];
  /** The uniform buffer's words, given the kernel's scalars. */
  readonly uniforms: (scalars: ArrayLike<number>) => Uint32Array;
  /** The program's scalars that it takes. */
  readonly scalars: readonly number[];
  readonly groups: Groups;
}

/** Whether two buffers are the same memory: a state's old and new value are. */
export const sameMemory = (a: Buffer, b: Buffer): boolean => a === b || (a.slot >= 0 && a.slot === b.slot);

export const WORKGROUP = 64;

/** What a text gets through the uniform buffer. */
export interface Numbers {
  /** The number (≥ 1) of what it fails as, if it can. */
  readonly firstCheck?: number;
  /** Scalars of the program: its number and type, in the order in which the text counts them. */
  readonly scalars?: readonly { readonly slot: number; readonly dtype: DType }[];
}

export class Shader {
  private readonly bound: { readonly buffer: Buffer; readonly element: Element; readonly name: string }[] = [];
  private readonly shared: string[] = [];
  private readonly functions: string[] = [];

  /** Binds memory as an array of `element`; gives its name in the text. */
  bind(buffer: Buffer, element: Element): string {
    let found = this.bound.find((b) => sameMemory(b.buffer, buffer) && b.element === element);
    if (!found) this.bound.push((found = { buffer, element, name: `m${this.bound.length}` }));
    return found.name;
  }

  /** Declares workgroup memory. */
  workgroup(declaration: string): void {
    this.shared.push(`var<workgroup> ${declaration};`);
  }

  /** Adds a function of the text's own. */
  define(text: string): void {
    this.functions.push(text);
  }

  /** The text around `body`. */
  build(body: string, size: number, groups: Groups, { firstCheck = 0, scalars = [] }: Numbers = {}): Dispatch {
    const own = this.functions.join("\n");
    const fails = /\bfail(ure)?\b/.test(body + own);
    const subgroups = /\bsubgroup[A-Z]/.test(body + own);
    const source = [
      ...(subgroups ? ["enable subgroups;"] : []),
      ...(fails ? ["struct Failure { operation: atomic<u32>, index: atomic<u32> }"] : []),
      `@group(0) @binding(0) var<uniform> p: array<vec4<u32>, ${Math.ceil((UNIFORM_HEAD + scalars.length) / 4)}>;`,
      ...this.bound.map(
        (b, i) => `@group(0) @binding(${i + 1}) var<storage, read_write> ${b.name}: array<${b.element}>;`,
      ),
      ...(fails ? [`@group(0) @binding(${this.bound.length + 1}) var<storage, read_write> failure: Failure;`] : []),
      ...this.shared,
      libraryFor(body + own),
      own,
      `@compute @workgroup_size(${size})`,
      `fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32${subgroups ? ", @builtin(subgroup_invocation_id) subgroupLane: u32" : ""}) {`,
      // a text need not use all of these
      "  _ = p[0]; _ = group; _ = groups; _ = local;",
      body,
      "}",
      "",
    ]
      .filter(Boolean)
      .join("\n");
    const types = scalars.map((s) => s.dtype);
    return {
      source,
      kinds: ["uniform", ...this.bound.map(() => "buffer" as const), ...(fails ? ["failure" as const] : [])],
      buffers: this.bound.map((b) => b.buffer),
      uniforms: (values) => packUniforms(types, { length: 0, firstCheck, scalars: values }),
      scalars: scalars.map((s) => s.slot),
      groups,
    };
  }

  /** A text that does `body` for every e of 0 … total − 1. */
  flat(total: number, body: string, numbers: Numbers = {}): Dispatch {
    const head = `  for (var e = i32(group.x) * ${WORKGROUP} + i32(local); e < ${total}; e += i32(groups.x) * ${WORKGROUP}) {`;
    return this.build(`${head}\n${body}\n  }`, WORKGROUP, along(total / WORKGROUP), numbers);
  }
}

/** Workgroups along one axis, as many as a dispatch may have; texts reach what is left by strides. */
export const along = (groups: number): Groups => ({
  x: Math.max(1, Math.min(MAX_GROUPS, Math.ceil(groups))),
  y: 1,
  z: 1,
});
