/**
 * Module: what every layer and model is. Parameters, buffers and submodules are found by looking through the object's own
 * properties, in the order in which they were defined; there is no registration. Files are the affair of `formats/`.
 */
import { type DType, dtypes, isDType, isFloat } from "../core/dtype.ts";
import { NablaError, ShapeError } from "../core/errors.ts";
import { printedByNode } from "../core/inspect.ts";
import { sameShape, showShape, sizeOf } from "../core/shape.ts";
import { keep } from "../execution/index.ts";
import { cast, detach } from "../graph/ops.ts";
import { setData, Tensor } from "../tensor/tensor.ts";
import { Buffer, Parameter } from "./parameter.ts";

/** Tensors by PyTorch's keys ("fc1.weight"): the model's own, not copies. */
export type StateDict = Record<string, Tensor>;

export interface LoadOptions {
  /** Throw where keys are missing or unexpected. Default: true. */
  readonly strict?: boolean;
  /** Take over the tensors' memory instead of copying it: for tensors that are used for nothing else. Default: false. */
  readonly assign?: boolean;
}

export interface LoadResult {
  readonly missingKeys: string[];
  readonly unexpectedKeys: string[];
}

/** Where a model is moved to: a dtype (for what is floating), a device, or both. */
export type Destination = DType | (string & {}) | { readonly dtype?: DType; readonly device?: string };

/** What the outermost `forward` returns is kept up to this size, so that it can be read after the step. */
const keptBytes = 2 ** 20;
let depth = 0;

const wrapped = new WeakSet<object>();

/**
 * Makes a class's `forward` notice whether it is the outermost one. Plain calls of `model.forward(x)` then behave as
 * PyTorch's users expect: the logits can be read after `optimizer.step()`, though the weights have moved on.
 */
function watchForward(prototype: object): void {
  for (let at = prototype; at !== Module.prototype && at !== null; at = Object.getPrototypeOf(at) as object) {
    if (wrapped.has(at)) continue;
    wrapped.add(at);
    const own = Object.getOwnPropertyDescriptor(at, "forward");
    if (typeof own?.value !== "function") continue;
    const forward = own.value as (...inputs: unknown[]) => unknown;
    Object.defineProperty(at, "forward", {
      ...own,
      value: function (this: Module, ...inputs: unknown[]): unknown {
        depth++;
        let output: unknown;
        try {
          output = forward.apply(this, inputs);
        } finally {
          depth--;
        }
        if (depth === 0 && output instanceof Tensor) keepIfSmall(output);
        return output;
      },
    });
  }
}

function keepIfSmall({ node }: Tensor): void {
  if (node.requiresGrad && node.storage === null && sizeOf(node.shape) * dtypes[node.dtype].bytes <= keptBytes)
    keep(node);
}

/** A part of a model that holds parameters, buffers and other modules (torch.nn.Module). */
export abstract class Module {
  /** Whether layers that behave differently in training (dropout, batch norm) do so; `train()` and `eval()` set it. */
  training = true;

  /**
   * Whether `forward` follows from its inputs and from what the module holds: tensors, modules, numbers, texts, plain objects. A step through a
   * model all of whose classes say so may be repeated without being recorded (watch.ts). Each class says it for itself: it is not inherited.
   */
  static readonly isPure: boolean = false;

  /** Names under which properties appear in the state dict, where PyTorch's differ from ours. */
  static readonly stateNames: Readonly<Record<string, string>> = {};

  constructor() {
    watchForward(new.target.prototype);
  }

  /**
   * The computation. Under training, what the outermost call returns is kept up to 1 MiB: it can still be read after the
   * optimiser's step.
   */
  abstract forward(...inputs: never[]): unknown;

  /** The modules that this one holds itself, by name. */
  *namedChildren(): Generator<[string, Module]> {
    for (const [name, value] of Object.entries(this)) {
      if (value instanceof Module) yield [name, value];
      else if (Array.isArray(value) && value.some((v) => v instanceof Module || v instanceof Parameter))
        throw new NablaError(
          `${this.constructor.name}: the property "${name}" is a plain array of modules or parameters, which are not found there; use new nn.ModuleList([…])`,
        );
    }
  }

  children(): Module[] {
    return [...this.namedChildren()].map(([, child]) => child);
  }

  /**
   * Puts another module in the place of the child `name`, as adapters do: the model then calls that one. Throws NablaError where
   * there is no such child.
   */
  replaceChild(name: string, module: Module): void {
    if (!((this as unknown as Record<string, unknown>)[name] instanceof Module))
      throw new NablaError(
        `${this.constructor.name}.replaceChild: there is no child "${name}"; there are ${[...this.namedChildren()].map(([child]) => child).join(", ") || "none"}`,
      );
    Object.assign(this, { [name]: module });
  }

  /** This module and all below it, each once, by their paths ("" for this one). */
  *namedModules(prefix = "", seen: Set<Module> = new Set()): Generator<[string, Module]> {
    if (seen.has(this)) return;
    seen.add(this);
    yield [prefix, this];
    for (const [name, child] of this.namedChildren())
      yield* child.namedModules(prefix ? `${prefix}.${name}` : name, seen);
  }

  modules(): Module[] {
    return [...this.namedModules()].map(([, module]) => module);
  }

  /** Own tensors of one kind, under their names in the state dict. */
  *#own<T extends Tensor>(kind: new (...args: never[]) => T): Generator<[string, T]> {
    const { stateNames } = this.constructor as typeof Module;
    for (const [name, value] of Object.entries(this))
      if (value instanceof kind) yield [stateNames[name] ?? name, value];
  }

  *#named<T extends Tensor>(kind: new (...args: never[]) => T): Generator<[string, T]> {
    const seen = new Set<T>();
    for (const [path, module] of this.namedModules())
      for (const [name, tensor] of module.#own(kind)) {
        if (seen.has(tensor)) continue;
        seen.add(tensor);
        const full = path ? `${path}.${name}` : name;
        if (full.endsWith(tensor.name)) tensor.name = full; // what errors call it: the longest path known
        yield [full, tensor];
      }
  }

  /** Every parameter of this module and those below, by path; one that is shared comes once, under its first path. */
  namedParameters(): Generator<[string, Parameter]> {
    return this.#named(Parameter);
  }
  parameters(): Parameter[] {
    return [...this.namedParameters()].map(([, parameter]) => parameter);
  }
  namedBuffers(): Generator<[string, Buffer]> {
    return this.#named(Buffer);
  }
  buffers(): Buffer[] {
    return [...this.namedBuffers()].map(([, buffer]) => buffer);
  }

  /** Adds a buffer as the property `name` (torch's register_buffer); assigning `new nn.Buffer(…)` to a property does the same. */
  registerBuffer(name: string, data: Tensor, options: { readonly persistent?: boolean } = {}): Buffer {
    const buffer = new Buffer(data, options);
    Object.assign(this, { [name]: buffer });
    return buffer;
  }

  /** Puts this module and all below it in training mode, or out of it. */
  train(mode = true): this {
    for (const module of this.modules()) module.training = mode;
    return this;
  }
  /** Evaluation mode: no dropout, batch norm by its running statistics. */
  eval(): this {
    return this.train(false);
  }

  /** Calls `fn` with every module, this one last. */
  apply(fn: (module: Module) => void): this {
    for (const child of this.children()) child.apply(fn);
    fn(this);
    return this;
  }

  /** Drops the gradients of all parameters. */
  zeroGrad(): void {
    for (const parameter of this.parameters()) parameter.grad = null;
  }

  /** Makes all parameters collect gradients, or none (freezing). */
  requiresGrad_(value = true): this {
    for (const parameter of this.parameters()) parameter.requiresGrad_(value);
    return this;
  }

  /** Number of elements of all parameters; with `trainable`, of those that collect gradients. */
  parameterCount(options: { readonly trainable?: boolean } = {}): number {
    return this.parameters().reduce((n, x) => n + (options.trainable && !x.requiresGrad ? 0 : x.size), 0);
  }

  /** Moves all parameters and buffers to a device, the floating ones to a dtype. Make the optimiser afterwards. */
  to(destination: Destination): this {
    const { dtype, device } =
      typeof destination === "object"
        ? destination
        : isDType(destination)
          ? { dtype: destination, device: undefined }
          : { dtype: undefined, device: destination };
    if (dtype !== undefined && !isFloat(dtype))
      throw new NablaError(`${this.constructor.name}.to: parameters can only be of a floating dtype, not ${dtype}`);
    for (const tensor of [...this.parameters(), ...this.buffers()]) {
      const recast = dtype !== undefined && dtype !== tensor.dtype && isFloat(tensor.dtype);
      const moves = device !== undefined && device !== tensor.device;
      if (!recast && !moves) continue;
      let moved = tensor.detach();
      if (recast) moved = moved.to(dtype);
      if (moves) moved = moved.to(device);
      setData(tensor, moved);
      tensor.grad = null;
    }
    return this;
  }

  /**
   * Parameters and persistent buffers by PyTorch's keys. They are the model's own tensors: what they hold changes with the
   * next step; clone() keeps a copy.
   */
  stateDict(): StateDict {
    const out: StateDict = {};
    for (const [path, module] of this.#everyPath())
      for (const [name, tensor] of module.#own(Tensor))
        if (tensor instanceof Parameter || (tensor instanceof Buffer && tensor.persistent))
          out[path ? `${path}.${name}` : name] = tensor;
    return out;
  }

  /** As namedModules, but a module that is shared comes under each of its paths. */
  *#everyPath(prefix = ""): Generator<[string, Module]> {
    yield [prefix, this];
    for (const [name, child] of this.namedChildren()) yield* child.#everyPath(prefix ? `${prefix}.${name}` : name);
  }

  /**
   * Copies tensors into the parameters and buffers of the same keys, cast to their dtypes (torch's load_state_dict). Throws
   * NablaError naming every missing or unexpected key (unless `strict` is false) and every wrong shape; the model is then as
   * it was.
   */
  loadStateDict(stateDict: Readonly<StateDict>, options: LoadOptions = {}): LoadResult {
    const { strict = true, assign = false } = options;
    const own = this.stateDict();
    // a tensor that is shared has several keys; one of them is enough
    const given = new Set(Object.keys(own).flatMap((key) => (key in stateDict ? [own[key]] : [])));
    const missingKeys = Object.keys(own).filter((key) => !given.has(own[key]));
    const unexpectedKeys = Object.keys(stateDict).filter((key) => !(key in own));
    const wrong = Object.keys(own).flatMap((key) => {
      const source = stateDict[key];
      if (source === undefined) return [];
      if (!(source instanceof Tensor)) return [`"${key}" is not a tensor`];
      return sameShape(source.shape, own[key].shape)
        ? []
        : [`"${key}" has shape ${showShape(source.shape)}, the model's is ${showShape(own[key].shape)}`];
    });
    const complaints = [
      ...(strict && missingKeys.length ? [`missing keys: ${listed(missingKeys)}`] : []),
      ...(strict && unexpectedKeys.length ? [`unexpected keys: ${listed(unexpectedKeys)}`] : []),
      ...(wrong.length ? [`wrong shapes: ${wrong.slice(0, 20).join("; ")}${wrong.length > 20 ? "; …" : ""}`] : []),
    ];
    if (complaints.length) {
      const kind = wrong.length ? ShapeError : NablaError;
      throw new kind(`${this.constructor.name}.loadStateDict: ${complaints.join(". ")}. Nothing was loaded`);
    }
    const loaded = new Set<Tensor>();
    for (const [key, tensor] of Object.entries(own)) {
      const source = stateDict[key];
      if (source === undefined || source === tensor || loaded.has(tensor)) continue;
      loaded.add(tensor);
      const value = cast(source.node, tensor.dtype);
      setData(tensor, new Tensor(assign && !value.requiresGrad ? value : detach(value)));
    }
    return { missingKeys, unexpectedKeys };
  }

  /** What the line of this module says between its brackets when it is printed. */
  extraRepr(): string {
    return "";
  }

  /** The tree of modules, as PyTorch prints it. */
  toString(): string {
    const children = [...this.namedChildren()].map(([name, child]) =>
      `(${name}): ${String(child)}`.replaceAll("\n", "\n  "),
    );
    const extra = this.extraRepr();
    const inside = children.length ? `\n  ${[...(extra ? [extra] : []), ...children].join("\n  ")}\n` : extra;
    return `${this.constructor.name}(${inside})`;
  }
}

if (!import.meta.forBrowsers) printedByNode(Module);

/** Runs `fn` with the model in evaluation mode, and puts each of its modules back into the mode that it was in. */
export async function inEvaluation<T>(model: Module, fn: () => Promise<T>): Promise<T> {
  const modes = model.modules().map((module) => [module, module.training] as const);
  model.eval();
  try {
    return await fn();
  } finally {
    for (const [module, training] of modes) module.training = training;
  }
}

function listed(keys: readonly string[]): string {
  const shown = keys.slice(0, 20).map((key) => `"${key}"`);
  return shown.join(", ") + (keys.length > 20 ? ` and ${keys.length - 20} more` : "");
}
