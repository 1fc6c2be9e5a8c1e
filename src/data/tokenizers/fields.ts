/** Reading the parts of a `tokenizer.json`: typed fields, and errors that say which field of which part is wrong. */
import { TokenizerError } from "../errors.ts";

const isObject = (x: unknown): x is Record<string, unknown> => typeof x === "object" && x !== null && !Array.isArray(x);

const show = (x: unknown): string => {
  const text = JSON.stringify(x) ?? "nothing";
  return text.length > 60 ? `${text.slice(0, 57)}…` : text;
};

/** One object of the file. Each method throws TokenizerError where the value is of another kind; null counts as absent. */
export class Fields {
  readonly raw: Readonly<Record<string, unknown>>;
  /** What errors call it: the file and the way to this part. */
  readonly place: string;
  readonly #beginning: string;

  constructor(raw: unknown, place: string, isFile = true) {
    this.#beginning = isFile ? `${place}: ` : `${place}.`;
    if (!isObject(raw)) throw new TokenizerError(`${place} must be an object, got ${show(raw)}`);
    this.raw = raw;
    this.place = place;
  }

  has(name: string): boolean {
    return Object.hasOwn(this.raw, name) && this.raw[name] !== null;
  }

  /** The error of a field; for whoever finds out more about it. */
  wrong(name: string, expected: string): TokenizerError {
    return new TokenizerError(`${this.#beginning}${name} must be ${expected}, got ${show(this.raw[name])}`);
  }

  #read<T>(name: string, expected: string, isRight: (x: unknown) => x is T, fallback: T | undefined): T {
    if (!this.has(name) && fallback !== undefined) return fallback;
    const value = this.raw[name];
    if (!isRight(value)) throw this.wrong(name, expected);
    return value;
  }

  text(name: string, fallback?: string): string {
    return this.#read(name, "a text", (x): x is string => typeof x === "string", fallback);
  }
  flag(name: string, fallback?: boolean): boolean {
    return this.#read(name, "true or false", (x): x is boolean => typeof x === "boolean", fallback);
  }
  number(name: string, fallback?: number): number {
    return this.#read(name, "a number", (x): x is number => typeof x === "number" && Number.isFinite(x), fallback);
  }
  /** A whole number from `least` on. */
  whole(name: string, fallback?: number, least = 0): number {
    const isWhole = (x: unknown): x is number => Number.isSafeInteger(x) && (x as number) >= least;
    return this.#read(name, `a whole number ≥ ${least}`, isWhole, fallback);
  }
  list(name: string, fallback?: readonly unknown[]): readonly unknown[] {
    return this.#read<readonly unknown[]>(name, "a list", Array.isArray, fallback);
  }
  /** The objects of a list. */
  parts(name: string): Fields[] {
    return this.list(name, []).map((raw, i) => new Fields(raw, `${this.#beginning}${name}[${i}]`, false));
  }
  part(name: string): Fields {
    return new Fields(this.raw[name], `${this.#beginning}${name}`, false);
  }
  /** A part that may be absent. */
  optional(name: string): Fields | null {
    return this.has(name) ? this.part(name) : null;
  }
  choice<K extends string>(name: string, known: readonly K[], fallback?: NoInfer<K>): K {
    const value = this.text(name, fallback);
    if (!(known as readonly string[]).includes(value)) throw this.wrong(name, `one of ${known.join(", ")}`);
    return value as K;
  }

  /** The row of a table for this part's `type`. */
  kind<T>(table: Readonly<Record<string, T>>): T {
    const type = this.text("type");
    if (!Object.hasOwn(table, type)) throw this.wrong("type", `one of ${Object.keys(table).join(", ")}`);
    return table[type];
  }
}
