/**
 * The worker's side of a remote backend: opens a backend, and does with its memory and programs what the page asks for.
 * Requests are taken in the order in which they come; a page does not send what must wait for an answer before it has it.
 */
import type { DType, TypedArray } from "../../core/dtype.ts";
import { BackendError } from "../../core/errors.ts";
import { operations } from "../../graph/node.ts";
import type { Backend, Program } from "../backend.ts";
import { readCapture } from "./read-capture.ts";
import type { Answer, Opened, Request, WireError } from "./wire.ts";

/** The backends that a worker can open, by name. */
export type Openers = Readonly<Record<string, () => Backend | Promise<Backend>>>;

export type Reply = (answer: Answer, transfer: ArrayBuffer[]) => void;

const describe = (error: unknown): WireError =>
  error instanceof Error ? { name: error.name, message: error.message } : { name: "Error", message: String(error) };

export class Host {
  readonly #openers: Openers;
  readonly #reply: Reply;
  #backend: Backend | null = null;
  /** Memory by the page's numbers; what could not be allocated or written is the error that whoever reads it gets. */
  readonly #memory = new Map<number, { readonly memory: unknown } | { readonly error: unknown }>();
  readonly #programs = new Map<number, Program>();

  constructor(openers: Openers, reply: Reply) {
    this.#openers = openers;
    this.#reply = reply;
  }

  handle(request: Request): void {
    switch (request.kind) {
      case "allocate":
        this.#attempt(request.memory, () => this.#opened().allocate(request.bytes));
        return;
      case "write":
        this.#attempt(request.memory, () => {
          const memory = this.#at(request.memory);
          this.#opened().write(memory, request.data);
          return memory;
        });
        return;
      case "free":
        this.#memory.delete(request.memory);
        return;
      case "dispose":
        this.#programs.get(request.program)?.dispose?.();
        this.#programs.delete(request.program);
        return;
      default:
        void this.#answer(request);
    }
  }

  async #answer(request: Extract<Request, { call: number }>): Promise<void> {
    const { call } = request;
    try {
      const value = await this.#value(request);
      this.#reply({ call, value }, ArrayBuffer.isView(value) ? [value.buffer as ArrayBuffer] : []);
    } catch (error) {
      this.#reply({ call, error: describe(error) }, []);
    }
  }

  async #value(request: Extract<Request, { call: number }>): Promise<Extract<Answer, { value: unknown }>["value"]> {
    switch (request.kind) {
      case "open":
        return this.#open(request.backend);
      case "read":
        return this.#read(request.memory, request.dtype, request.length);
      case "compile": {
        const program = await this.#opened().compile(readCapture(request.capture));
        this.#programs.set(request.program, program);
        return program.stats;
      }
      case "run": {
        const program = this.#programs.get(request.program);
        if (!program) throw new BackendError(`remote: program ${request.program} is not here`);
        const at = (list: readonly number[]): unknown[] => list.map((number) => this.#at(number));
        await program.run({ buffers: at(request.buffers), scalars: request.scalars, outputs: at(request.outputs) });
        return null;
      }
    }
  }

  async #open(name: string): Promise<Opened> {
    const open = this.#openers[name];
    if (!open) throw new BackendError(`remote: the worker has no backend "${name}"`);
    this.#backend = await open();
    return { dtypes: this.#backend.dtypes, operations: [...operations.keys()] };
  }

  async #read(number: number, dtype: DType, length: number): Promise<TypedArray> {
    const data = await this.#opened().read(this.#at(number), dtype, length);
    // what is transferred must be an array's own, and all of it
    return data.byteLength === data.buffer.byteLength && data.buffer instanceof ArrayBuffer ? data : data.slice();
  }

  #opened(): Backend {
    if (!this.#backend) throw new BackendError("remote: no backend has been opened");
    return this.#backend;
  }

  #at(number: number): unknown {
    const entry = this.#memory.get(number);
    if (!entry) throw new BackendError(`remote: memory ${number} is not here`);
    if ("error" in entry) throw entry.error;
    return entry.memory;
  }

  #attempt(number: number, work: () => unknown): void {
    try {
      this.#memory.set(number, { memory: work() });
    } catch (error) {
      this.#memory.set(number, { error });
    }
  }
}
