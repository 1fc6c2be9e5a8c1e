/** Modules that hold other modules: Sequential, ModuleList, ModuleDict. */
import { NablaError } from "../../core/errors.ts";
import type { Tensor } from "../../tensor/tensor.ts";
import { Module } from "../module.ts";

/** A module from a tensor to a tensor: what Sequential takes. */
export interface Layer extends Module {
  forward(x: Tensor): Tensor;
}

function expectModule(container: string, name: string | number, module: unknown): void {
  if (!(module instanceof Module))
    throw new NablaError(
      `${container}: entry ${name} is no module${typeof module === "function" ? " (an instance is needed: new …)" : ""}; wrap a function in a class with a forward method`,
    );
}

/**
 * Layers one after the other (torch.nn.Sequential): `new Sequential(a, b)`, with the keys "0", "1", …, or
 * `new Sequential({ hidden: a, out: b })`, with the names given.
 */
export class Sequential extends Module {
  [index: number]: Layer;
  readonly #layers: Layer[] = [];
  constructor(...layers: readonly Layer[]);
  constructor(layers: Readonly<Record<string, Layer>>);
  constructor(...layers: readonly (Layer | Readonly<Record<string, Layer>>)[]) {
    super();
    const [first] = layers;
    const named =
      layers.length === 1 && typeof first === "object" && !(first instanceof Module) ? Object.entries(first) : null;
    for (const [name, layer] of named ?? layers.map((l, i) => [i, l] as const)) {
      expectModule("Sequential", name, layer);
      if (name in this)
        throw new NablaError(`Sequential: a layer can't be called "${name}", which every module has already`);
      this.#layers.push(layer as Layer);
      Object.assign(this, { [name]: layer });
    }
  }
  get length(): number {
    return this.#layers.length;
  }
  override replaceChild(name: string, module: Module): void {
    const at = this.#layers.indexOf((this as unknown as Record<string, Layer>)[name]);
    super.replaceChild(name, module);
    this.#layers[at] = module as Layer;
  }
  [Symbol.iterator](): Iterator<Layer> {
    return this.#layers[Symbol.iterator]();
  }
  forward(x: Tensor): Tensor {
    const layers = this.#layers;
    for (let i = 0; i < layers.length; i++) x = layers[i].forward(x);
    return x;
  }
}

/** A list of modules that are found as parts of the model; how they are called is the model's affair (torch.nn.ModuleList). */
export class ModuleList<M extends Module = Module> extends Module implements Iterable<M> {
  static override readonly isPure = true;
  [index: number]: M;
  #length = 0;
  constructor(modules: Iterable<M> = []) {
    super();
    for (const module of modules) this.append(module);
  }
  get length(): number {
    return this.#length;
  }
  append(module: M): this {
    expectModule("ModuleList", this.#length, module);
    this[this.#length++] = module;
    return this;
  }
  at(index: number): M | undefined {
    return this[index < 0 ? index + this.#length : index];
  }
  *[Symbol.iterator](): Iterator<M> {
    for (let i = 0; i < this.#length; i++) yield this[i];
  }
  forward(): never {
    throw new NablaError("ModuleList: has no forward of its own; go through its modules");
  }
}

/** Modules by name (torch.nn.ModuleDict). */
export class ModuleDict<M extends Module = Module> extends Module implements Iterable<[string, M]> {
  readonly #modules = new Map<string, M>();
  constructor(modules: Readonly<Record<string, M>> = {}) {
    super();
    for (const [name, module] of Object.entries(modules)) this.set(name, module);
  }
  get size(): number {
    return this.#modules.size;
  }
  has(name: string): boolean {
    return this.#modules.has(name);
  }
  get(name: string): M {
    const module = this.#modules.get(name);
    if (!module)
      throw new NablaError(`ModuleDict: there is no "${name}"; there are ${[...this.#modules.keys()].join(", ")}`);
    return module;
  }
  set(name: string, module: M): this {
    expectModule("ModuleDict", name, module);
    this.#modules.set(name, module);
    return this;
  }
  [Symbol.iterator](): Iterator<[string, M]> {
    return this.#modules[Symbol.iterator]();
  }
  override *namedChildren(): Generator<[string, Module]> {
    yield* this.#modules;
  }
  override replaceChild(name: string, module: Module): void {
    this.get(name);
    this.set(name, module as M);
  }
  forward(): never {
    throw new NablaError("ModuleDict: has no forward of its own; go through its modules");
  }
}
