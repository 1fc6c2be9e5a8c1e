/**
 * The host's WebAssembly, as much of it as is used here. TypeScript's own declarations come with the DOM's, which this
 * package does not ask its users to have.
 */

export interface LinearMemory {
  readonly buffer: ArrayBuffer;
  grow(pages: number): number;
}
/** A module that the engine has compiled; it can be sent to other threads. */
export interface CompiledModule {
  readonly [Symbol.toStringTag]?: string;
}
export interface FunctionTable {
  readonly length: number;
  grow(by: number): number;
  set(index: number, value: unknown): void;
}

interface Engine {
  Memory: new (options: { initial: number; maximum: number; shared: boolean }) => LinearMemory;
  Table: new (options: { initial: number; element: "anyfunc" }) => FunctionTable;
  Instance: new (
    module: CompiledModule,
    imports: Readonly<Record<string, Readonly<Record<string, unknown>>>>,
  ) => { readonly exports: Readonly<Record<string, unknown>> };
  compile(bytes: Uint8Array<ArrayBuffer>): Promise<CompiledModule>;
  validate(bytes: Uint8Array<ArrayBuffer>): boolean;
}

export const engine: Engine = (globalThis as unknown as { WebAssembly: Engine }).WebAssembly;
