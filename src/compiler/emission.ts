/**
 * In what order a renderer emits the values of a kernel, whatever it writes them in: each once, after its arguments, in the
 * outermost loop that it does not change in. A `Name` is what a value is called once it is emitted: a variable in C or WGSL,
 * locals in WebAssembly. What stands in the loops, and what an expression looks like, is the renderer's business.
 */
import type { Index } from "./index-expr.ts";
import { type Kernel, type Stage, type Store, sourcesOf, type Value } from "./kernel.ts";

/** What check k of a kernel looks at; it fails as the kernel's first operation number + k. */
export interface Check {
  readonly kind: "index" | "division";
  readonly extent: number;
}

export abstract class Emission<Name> {
  protected readonly k: Kernel;
  protected readonly checks: Check[] = [];
  /** The stage that is emitted now. */
  protected stage = 0;
  /** Names known at this point, innermost scope last: of values by their number, of anything else by a text. */
  private readonly scopes: Map<number | string, Name>[] = [new Map()];
  private readonly storeOf = new Map<Value, Store>();

  constructor(k: Kernel) {
    this.k = k;
    for (const s of k.stages)
      for (const st of s.stores)
        if (st.value.kind === "op" || st.value.kind === "select") this.storeOf.set(st.value, st);
  }

  /** Emits a value whose sources are known, or reads it back from `again`; gives its name. */
  protected abstract emit(v: Value, again: Store | null): Name;

  /** Whether a value of an earlier stage can be read back from where that stage has stored it. */
  protected abstract canReload(v: Value, store: Store): boolean;

  /** 0: the same everywhere; 1: outside the inner loop; 2: inside it, as a constant, which costs nothing there. */
  protected level(v: Value): number {
    return v.kind === "const" || v.varies("c") ? 2 : v.varies("r") ? 1 : 0;
  }

  /** Called before a loop for what is loaded and stored in it, once the values that do not change there are emitted. */
  protected beforeAccess(_buffer: number, _index: Index, _level: number): void {}

  // ---- scopes ------------------------------------------------------------------------------------------------------

  protected get depth(): number {
    return this.scopes.length;
  }

  protected find(key: number | string): Name | undefined {
    for (let i = this.scopes.length - 1; i >= 0; i--) {
      const name = this.scopes[i].get(key);
      if (name !== undefined) return name;
    }
    return undefined;
  }

  /** The names of the arguments of a value that can be emitted now. */
  protected argsOf(v: Value): Name[] {
    return v.args.map((a) => this.find(a.id) as Name);
  }

  /** Makes a name known up to the end of the scope. */
  protected keep(key: number | string, name: Name): void {
    this.scopes[this.scopes.length - 1].set(key, name);
  }

  protected openScope(): void {
    this.scopes.push(new Map());
  }

  protected closeScope(): void {
    this.scopes.pop();
  }

  // ---- values ------------------------------------------------------------------------------------------------------

  /** A value that an earlier stage has stored is read back rather than computed again. */
  private reload(v: Value): Store | null {
    if (v.stage >= this.stage || v.cost < 2) return null;
    const store = this.storeOf.get(v);
    return store && this.canReload(v, store) ? store : null;
  }

  /** Emits, before a loop, the values of a stage (for level 0: of all stages) that do not change in it. */
  protected uniforms(stage: Stage, level: number): void {
    const seen = new Set<Value>();
    for (const s of level === 0 ? this.k.stages : [stage]) {
      const roots = [...s.stores, ...s.reductions, ...s.columns, ...(level === 0 ? s.rowStores : [])];
      for (const x of roots) this.hoist(x.value, level, seen);
      for (const x of s.stores) this.beforeAccess(x.buffer, x.index, level);
    }
  }

  /** What does not change below `root`; without recursion, as chains of values can be long. */
  private hoist(root: Value, level: number, seen: Set<Value>): void {
    const stack = [root];
    const entered = new Set<Value>();
    while (stack.length) {
      const v = stack.pop() as Value;
      if (entered.delete(v)) {
        if (v.kind === "load") this.beforeAccess(v.slot, v.index as Index, level);
        continue;
      }
      if (seen.has(v)) continue;
      seen.add(v);
      if (this.find(v.id) !== undefined || this.reload(v)) continue;
      if (this.level(v) > level) {
        entered.add(v);
        stack.push(v, ...sourcesOf(v).reverse());
      } else if (v.stage <= this.stage) this.value(v, level);
    }
  }

  /** The name of a value, emitting what it needs at this point: sources first, without recursion. */
  protected value(root: Value, level = 2): Name {
    const stack = [root];
    while (stack.length) {
      const v = stack[stack.length - 1];
      if (this.find(v.id) !== undefined) {
        stack.pop();
        continue;
      }
      const again = level === 2 ? this.reload(v) : null;
      const missing = again ? [] : sourcesOf(v).filter((x) => this.find(x.id) === undefined);
      if (missing.length) stack.push(...missing.reverse());
      else this.keep(v.id, this.emit(v, again));
    }
    return this.find(root.id) as Name;
  }

  // ---- checks ------------------------------------------------------------------------------------------------------

  /** The number of a check; equal ones are one. */
  protected addCheck(check: Check): number {
    const same = this.checks.findIndex((c) => c.kind === check.kind && c.extent === check.extent);
    return same >= 0 ? same : this.checks.push(check) - 1;
  }
}
