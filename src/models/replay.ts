/**
 * Decoding steps that are recorded once and then repeated. A step that reads one token a row differs from the last one in the token and in the
 * cache's length alone, unless something has changed meanwhile: other weights, an adapter switched on, a module replaced, another table of angles.
 * That is looked at before each step (nn/watch.ts), and where it is so, or where it can't be known, the step is recorded as ever.
 */
import { beginStep, canRepeat, repeatStep, type Step } from "../execution/index.ts";
import { autocastDType } from "../graph/autocast.ts";
import type { Module } from "../nn/index.ts";
import { Watch } from "../nn/watch.ts";
import { isGradEnabled, Tensor } from "../tensor/index.ts";
import type { CachePlace, KeyValueCache } from "./cache.ts";
import { likeliest } from "./greedy.ts";

/** What a step through a cache gives: logits [batch, vocabulary], or the likeliest token of each row. */
export type StepKind = "decode" | "decodeGreedy";

/** What a decoding step is made of. */
interface Decoding {
  readonly model: Module;
  readonly kind: StepKind;
  /** [batch, 1] */
  readonly ids: Tensor;
  readonly place: CachePlace;
  /** Constants that depend on the length. */
  readonly tables: () => readonly Tensor[];
}

/** A step over a cache that can be repeated, and what must still be so. */
interface Repeatable {
  readonly model: Module;
  readonly kind: StepKind;
  readonly watch: Watch;
  readonly tables: readonly Tensor[];
  readonly step: Step;
}

const steps = new WeakMap<KeyValueCache, Repeatable>();

const memoryOf = ({ layers }: KeyValueCache): Tensor[] => layers.flatMap(({ keys, values }) => [keys, values]);

/** Appends the first `count` ids to the cache; gives of the logits after them, which `logits` records, what the kind says. */
export function decodingStep(decoding: Decoding, count: number, logits: () => Tensor): Tensor {
  const record = (): Tensor => (decoding.kind === "decode" ? logits() : likeliest(logits()));
  const result = count === 1 ? replayed(decoding, record) : record();
  decoding.place.cache.advance(count);
  return result;
}

/** What `record` gives, the result of a step; it is begun at once, and not recorded where it is as the last one over this cache. */
function replayed(decoding: Decoding, record: () => Tensor): Tensor {
  const { ids } = decoding;
  // on a page the device answers later anyway, and recording goes on meanwhile
  const asEver = import.meta.forBrowsers || isGradEnabled() || autocastDType() !== null || ids.shape[1] !== 1;
  if (asEver || ids.node.storage === null || !canRepeat(ids.device)) return record();
  const tables = decoding.tables();
  return repeated(decoding, tables) ?? recorded(decoding, tables, record);
}

/** The last step over the cache with these ids, if it can be repeated. */
function repeated({ model, kind, ids, place }: Decoding, tables: readonly Tensor[]): Tensor | null {
  const { cache, start, end } = place;
  const last = steps.get(cache);
  if (!last || last.model !== model || last.kind !== kind) return null;
  if (last.tables.some((table, i) => table !== tables[i]) || !last.watch.holds()) return null;
  const memory = memoryOf(cache);
  const states = memory.map(({ node }) => node);
  const done = repeatStep(last.step, { inputs: [ids.node], numbers: [start.value, end.value], states });
  if (!done) return null;
  for (let i = 0; i < memory.length; i++) memory[i].node = done.states[i];
  return new Tensor(done.root);
}

/** Records a step and begins it; what is needed to repeat it is kept, if it can be. */
function recorded({ model, kind, ids, place }: Decoding, tables: readonly Tensor[], record: () => Tensor): Tensor {
  const { cache, start, end } = place;
  steps.delete(cache);
  const memory = memoryOf(cache);
  const watch = Watch.over(model, [...memory, ...tables, ...(cache.begins ? [cache.begins] : [])]);
  if (!watch) return record();
  const parts = { inputs: [ids.node], numbers: [start, end], states: memory.map(({ node }) => node) };
  const result = record();
  const step = beginStep(ids.device, result.node, parts);
  const [tokens] = parts.inputs;
  if (step?.storages.every((storage) => storage === tokens.storage || watch.covers(storage)))
    steps.set(cache, { model, kind, watch, tables, step });
  return result;
}
