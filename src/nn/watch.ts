/**
 * What a model's forward follows from, beside its inputs: a list of what all its modules hold, to see later whether it is still so. It costs some
 * microseconds, where recording the forward again costs a hundred times that. Only for models all of whose classes say that this is all
 * (`Module.isPure`): a user's own module may look at anything.
 */
import { isCurrent, type Storage } from "../graph/node.ts";
import { Tensor } from "../tensor/tensor.ts";
import { Module } from "./module.ts";

type Properties = Readonly<Record<string, unknown>>;

/** An object, and what its properties were. */
interface Held {
  readonly object: Properties;
  readonly names: readonly string[];
  readonly values: readonly unknown[];
}

const isPlain = (value: object): boolean => {
  const prototype = Object.getPrototypeOf(value);
  return prototype === Object.prototype || prototype === null || Array.isArray(value);
};

export class Watch {
  private readonly held: Held[] = [];
  private readonly modules: Module[] = [];
  private readonly forwards: unknown[] = [];
  private readonly tensors: Tensor[] = [];
  private readonly storages: Storage[] = [];
  private readonly seen = new Set<object>();
  private pure = true;

  /** Watches what `root` holds, and the tensors given; null where that does not tell all, or where a tensor has no value yet. */
  static over(root: Module, tensors: Iterable<Tensor> = []): Watch | null {
    const watch = new Watch();
    watch.see(root);
    for (const tensor of tensors) watch.see(tensor);
    watch.seen.clear();
    return watch.pure ? watch : null;
  }

  private see(value: unknown): void {
    if (typeof value !== "object" || value === null || this.seen.has(value)) return;
    this.seen.add(value);
    if (value instanceof Tensor) this.seeTensor(value);
    else if (value instanceof Module) this.seeModule(value);
    else if (isPlain(value)) this.seeProperties(value);
    // an object of another class is not what a forward looks into: a tokenizer, say
  }

  private seeTensor(tensor: Tensor): void {
    const { node } = tensor;
    if (!isCurrent(node)) this.pure = false;
    this.tensors.push(tensor);
    this.storages.push(node.storage as Storage);
  }

  private seeModule(module: Module): void {
    if (!Object.hasOwn(module.constructor, "isPure") || !(module.constructor as typeof Module).isPure)
      this.pure = false;
    this.modules.push(module);
    this.forwards.push(module.forward);
    const own = Object.hasOwn(module, "forward") || Object.values(module).some((value) => typeof value === "function");
    if (own) this.pure = false; // what a method of one module alone looks at is not known
    this.seeProperties(module);
  }

  private seeProperties(object: object): void {
    const properties = object as Properties;
    const names: string[] = [];
    for (const name in properties) names.push(name);
    const values = names.map((name) => properties[name]);
    this.held.push({ object: properties, names, values });
    for (const value of values) this.see(value);
  }

  /** Whether a step that reads `storage` reads something that is watched. */
  covers(storage: Storage): boolean {
    return this.storages.includes(storage);
  }

  /**
   * Whether all is as it was. Tensors may have got other values meanwhile, in the same memory: a step reads what is there.
   */
  holds(): boolean {
    const { held, modules, forwards, tensors, storages } = this;
    for (let i = 0; i < tensors.length; i++) {
      const { node } = tensors[i];
      if (node.storage !== storages[i] || storages[i].version !== node.version) return false;
    }
    for (let i = 0; i < modules.length; i++) if (modules[i].forward !== forwards[i]) return false;
    for (let i = 0; i < held.length; i++) if (!isAsItWas(held[i])) return false;
    return true;
  }
}

function isAsItWas({ object, names, values }: Held): boolean {
  let i = 0;
  for (const name in object) {
    if (name !== names[i] || object[name] !== values[i]) return false;
    i++;
  }
  return i === names.length;
}
