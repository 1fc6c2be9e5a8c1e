/**
 * Reading a model's `config.json`: typed fields with the default that the architecture's authors gave them, and errors that
 * name the field. What the fields mean is the affair of each architecture's page.
 */
import { NablaError } from "../core/errors.ts";

/** A checkpoint that can't be loaded: an unknown architecture, a configuration or tensors that do not fit. */
export class PretrainedError extends NablaError {
  override name = "PretrainedError";
}

/** `config.json` as it was parsed. */
export type RawConfig = Readonly<Record<string, unknown>>;

/** Fields that transformers takes as floating numbers alone, of which JSON.stringify would write 30.0 as 30. */
const floatingFields = [
  "attn_logit_softcapping",
  "final_logit_softcapping",
  "initializer_range",
  "layer_norm_eps",
  "layer_norm_epsilon",
  "rms_norm_eps",
].join("|");

/** A configuration as a file that transformers reads. */
export const formatConfig = (config: RawConfig): string =>
  `${JSON.stringify(config, null, 2).replace(new RegExp(`^( {2}"(?:${floatingFields})": -?\\d+)(?=,?$)`, "gm"), "$1.0")}\n`;

/** Fields of a configuration by name. Each method throws PretrainedError where the value is of another kind. */
export class ConfigReader {
  readonly raw: RawConfig;
  /** What errors call it. */
  readonly source: string;
  constructor(raw: RawConfig, source = "config.json") {
    this.raw = raw;
    this.source = source;
  }

  /** Whether the field is there; null counts as absent, as in transformers. */
  has(name: string): boolean {
    return this.raw[name] !== undefined && this.raw[name] !== null;
  }

  #field<T>(name: string, what: string, isRight: (x: unknown) => x is T, fallback: T | undefined): T {
    if (!this.has(name)) {
      if (fallback !== undefined) return fallback;
      throw new PretrainedError(`${this.source}: "${name}" is missing; it must be ${what}`);
    }
    const value = this.raw[name];
    if (!isRight(value))
      throw new PretrainedError(`${this.source}: "${name}" must be ${what}, got ${JSON.stringify(value)}`);
    return value;
  }

  /** A whole number ≥ 1. */
  count(name: string, fallback?: number): number {
    const isCount = (x: unknown): x is number => Number.isInteger(x) && (x as number) >= 1;
    return this.#field(name, "a whole number ≥ 1", isCount, fallback);
  }
  /** A whole number ≥ 0, as token ids are. */
  index(name: string, fallback?: number): number {
    const isIndex = (x: unknown): x is number => Number.isInteger(x) && (x as number) >= 0;
    return this.#field(name, "a whole number ≥ 0", isIndex, fallback);
  }
  number(name: string, fallback?: number): number {
    return this.#field(name, "a number", (x): x is number => Number.isFinite(x), fallback);
  }
  boolean(name: string, fallback?: boolean): boolean {
    return this.#field(name, "true or false", (x): x is boolean => typeof x === "boolean", fallback);
  }
  text(name: string, fallback?: string): string {
    return this.#field(name, "a text", (x): x is string => typeof x === "string", fallback);
  }
  numbers(name: string, fallback?: readonly number[]): readonly number[] {
    const isList = (x: unknown): x is number[] => Array.isArray(x) && x.every(Number.isFinite);
    return this.#field<readonly number[]>(name, "a list of numbers", isList, fallback);
  }
  texts(name: string, fallback?: readonly string[]): readonly string[] {
    const isList = (x: unknown): x is string[] => Array.isArray(x) && x.every((each) => typeof each === "string");
    return this.#field<readonly string[]>(name, "a list of texts", isList, fallback);
  }
  /** A configuration inside this one; null where there is none. */
  part(name: string): ConfigReader | null {
    if (!this.has(name)) return null;
    const isObject = (x: unknown): x is RawConfig => typeof x === "object" && x !== null && !Array.isArray(x);
    return new ConfigReader(this.#field(name, "an object", isObject, undefined), `${this.source}: "${name}"`);
  }
  /** One of the texts that are known. */
  choice<K extends string>(name: string, known: readonly K[], fallback?: NoInfer<K>): K {
    const key = this.text(name, fallback);
    if (!(known as readonly string[]).includes(key))
      throw new PretrainedError(`${this.source}: "${name}" is ${JSON.stringify(key)}; known are ${known.join(", ")}`);
    return key as K;
  }

  /** Throws for a field that asks for something else than the value that is computed here. */
  expect(name: string, value: unknown, why: string): void {
    if (this.has(name) && this.raw[name] !== value)
      throw new PretrainedError(
        `${this.source}: "${name}" is ${JSON.stringify(this.raw[name])}; ${why}, so only ${JSON.stringify(value)} can be loaded`,
      );
  }

  /** How many attention heads the field says; they have to divide the hidden size. */
  heads(name: string, hiddenSize: number, fallback: number): number {
    const count = this.count(name, fallback);
    if (hiddenSize % count !== 0)
      throw new PretrainedError(`${this.source}: ${count} heads do not divide a hidden size of ${hiddenSize}`);
    return count;
  }

  /** The token that fills up; null where there is none. */
  padTokenId(): number | null {
    return this.has("pad_token_id") ? this.index("pad_token_id") : null;
  }

  /** The names of the classes by `id2label`, in the order of their numbers; null where there are none. */
  labelNames(): string[] | null {
    const names = this.part("id2label");
    if (!names) return null;
    return Object.keys(names.raw).map((_, i) => names.text(String(i)));
  }

  /** How many of the classes that a classifier tells apart, by `id2label`, `num_labels`, or transformers' default of 2. */
  labels(): number {
    const names = this.part("id2label");
    return names ? Object.keys(names.raw).length : this.count("num_labels", 2);
  }
}
