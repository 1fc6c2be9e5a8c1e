/**
 * A WebAssembly module: imported memory, table and functions, functions of its own, as bytes. Everything a module of this
 * backend imports comes from "env": `memory`, `table` (of kernels, where it calls them). Its own kernels it exports by
 * number, and the host puts them into the table: engines (V8 before 2024) keep every instance that imports a table as
 * long as the table, and a kernel has to go with its last program.
 */
import { type Callable, Func, type Signature, typeCode } from "./function.ts";
import { type Code, type Type, unsigned } from "./instructions.ts";

export interface MemoryImport {
  readonly shared: boolean;
  /** Most pages of 64 KiB; a shared memory has to say. */
  readonly maximum: number;
}

export class Module {
  readonly #memory: MemoryImport;
  readonly #types: Signature[] = [];
  readonly #imports: { readonly name: string; readonly f: Callable }[] = [];
  readonly #functions: Func[] = [];
  readonly #exports: { readonly name: string; readonly f: Func }[] = [];
  readonly #takesTable: boolean;
  #numKernels = 0;

  constructor(memory: MemoryImport, takesTable = false) {
    this.#memory = memory;
    this.#takesTable = takesTable;
  }

  /** The number of a signature. */
  type({ params, results }: Signature): number {
    const same = (a: readonly Type[], b: readonly Type[]) => a.length === b.length && a.every((t, i) => t === b[i]);
    const i = this.#types.findIndex((t) => same(t.params, params) && same(t.results, results));
    return i >= 0 ? i : this.#types.push({ params, results }) - 1;
  }

  /** A function that the host brings. */
  import(name: string, params: readonly Type[], results: readonly Type[]): Callable {
    const known = this.#imports.find((i) => i.name === name);
    if (known) return known.f;
    const f: Callable = { params, results, index: -1 };
    this.#imports.push({ name, f });
    return f;
  }

  function(params: readonly Type[], results: readonly Type[] = []): Func {
    const f = new Func(params, results);
    this.#functions.push(f);
    return f;
  }

  export(name: string, f: Func): void {
    this.#exports.push({ name, f });
  }

  /** Exports a function for the table, as kernel "0", "1" and so on. */
  kernel(f: Func): void {
    this.export(String(this.#numKernels++), f);
  }

  encode(): Uint8Array<ArrayBuffer> {
    let index = 0;
    for (const { f } of this.#imports) f.index = index++;
    for (const f of this.#functions) f.index = index++;
    const typeOf = [...this.#imports.map((i) => i.f), ...this.#functions].map((f) => this.type(f));
    const bodies = this.#functions.map((f) => f.encode());
    const out: Code = [0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0];
    const section = (id: number, items: readonly Code[]): void => {
      if (items.length === 0) return;
      const content: Code = [];
      unsigned(content, items.length);
      for (const item of items) for (const b of item) content.push(b);
      out.push(id);
      unsigned(out, content.length);
      for (const b of content) out.push(b);
    };
    const list = (types: readonly Type[]): Code => {
      const code: Code = [];
      unsigned(code, types.length);
      for (const t of types) code.push(typeCode[t]);
      return code;
    };
    section(
      1,
      this.#types.map((t) => [0x60, ...list(t.params), ...list(t.results)]),
    );
    const { shared, maximum } = this.#memory;
    section(2, [
      imported("memory", [0x02, shared ? 3 : 1, 0, ...number(maximum)]),
      ...(this.#takesTable ? [imported("table", [0x01, 0x70, 0x00, 0])] : []),
      ...this.#imports.map(({ name }, i) => imported(name, [0x00, ...number(typeOf[i])])),
    ]);
    section(
      3,
      this.#functions.map((_, i) => number(typeOf[this.#imports.length + i])),
    );
    section(
      7,
      this.#exports.map(({ name, f }) => [...text(name), 0x00, ...number(f.index)]),
    );
    section(
      10,
      bodies.map((body) => {
        const code = number(body.length);
        for (const b of body) code.push(b);
        return code;
      }),
    );
    return Uint8Array.from(out);
  }
}

const number = (n: number): Code => {
  const out: Code = [];
  unsigned(out, n);
  return out;
};
const text = (s: string): Code => {
  const bytes = new TextEncoder().encode(s);
  return [...number(bytes.length), ...bytes];
};
const imported = (name: string, description: Code): Code => [...text("env"), ...text(name), ...description];
