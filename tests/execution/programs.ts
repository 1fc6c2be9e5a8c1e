/**
 * Random programs over states and tensors, run twice: by the library, lazily, and by an eager interpreter that also knows
 * which version of which state every value still needs. Not a test itself; random-programs.test.ts runs it.
 */
import assert from "node:assert/strict";
import { IndexError, StaleReadError } from "../../src/core/errors.ts";
import { flush } from "../../src/execution/index.ts";
import { asState, slice, Tensor, tensor } from "../../src/tensor/index.ts";

/** mulberry32: a seed, a stream of numbers in [0, 1). */
export function stream(seed: number): () => number {
  let a = seed >>> 0;
  return () => {
    a = (a + 0x6d2b79f5) >>> 0;
    let t = Math.imul(a ^ (a >>> 15), 1 | a);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

/** An eager value, with what the lazy one was recorded from. */
interface Value {
  readonly data: Float32Array;
  readonly from: readonly Source[];
  /** Computing it fails: an index out of range. */
  readonly bad: boolean;
  realised: boolean;
}
type Source = Value | { readonly state: State; readonly version: number };

interface State {
  readonly tensor: Tensor;
  /** Values by version: what each assign wrote. Version 0 is the first value. */
  versions: Value[];
  flushed: number;
  /** Whether its first value was computed, and so comes with the first flush. */
  readonly computed: boolean;
}

interface Named {
  tensor: Tensor;
  value: Value;
}

const length = 6; // every tensor is [2, 3]
const columns = 3;

type Map1 = (a: Float32Array, b: Float32Array) => number[];
const f = Math.fround;

/** Operations of two tensors: how the library does it, and what it means. */
const operations: readonly { name: string; lazy: (a: Tensor, b: Tensor) => Tensor; eager: Map1 }[] = [
  { name: "add", lazy: (a, b) => a.add(b), eager: (a, b) => [...a].map((x, i) => f(x + b[i])) },
  { name: "sub", lazy: (a, b) => a.sub(b), eager: (a, b) => [...a].map((x, i) => f(x - b[i])) },
  { name: "mul", lazy: (a, b) => a.mul(b).clamp(-50, 50), eager: (a, b) => [...a].map((x, i) => clip(f(x * b[i]))) },
  { name: "half", lazy: (a) => a.mul(0.5), eager: (a) => [...a].map((x) => f(x * 0.5)) },
  { name: "maximum", lazy: (a, b) => a.maximum(b), eager: (a, b) => [...a].map((x, i) => Math.max(x, b[i])) },
  {
    name: "where",
    lazy: (a, b) => a.lt(b).where(a.gt(0), a.le(b)).float(),
    eager: (a, b) => [...a].map((x, i) => Number(x > 0 ? x < b[i] : x <= b[i])),
  },
  {
    name: "flip",
    lazy: (a) => a.at(slice(), slice(null, null, -1)),
    eager: (a) => [2, 1, 0, 5, 4, 3].map((i) => a[i]),
  },
  { name: "transpose", lazy: (a) => a.t().reshape(2, 3), eager: (a) => [0, 3, 1, 4, 2, 5].map((i) => a[i]) },
  { name: "row", lazy: (a, b) => a.at(1).add(b), eager: (a, b) => [...b].map((x, i) => f(a[3 + (i % 3)] + x)) },
  {
    name: "mean",
    lazy: (a, b) => a.mean({ dim: 0, keepdim: true }).add(b),
    eager: (a, b) => [...b].map((x, i) => f(f(f(a[i % 3] + a[3 + (i % 3)]) / 2) + x)),
  },
  { name: "roll", lazy: (a) => a.roll(1, 1), eager: (a) => [2, 0, 1, 5, 3, 4].map((i) => a[i]) },
  {
    name: "setAt",
    lazy: (a, b) => a.withAt([1, slice(0, 2)], b.at(0, slice(1))),
    eager: (a, b) => [a[0], a[1], a[2], b[1], b[2], a[5]],
  },
];
const clip = (x: number): number => Math.min(50, Math.max(-50, x));

export interface Outcome {
  reads: number;
  stale: number;
  failed: number;
}

/** Runs the program of `seed` on `device`; throws AssertionError where library and interpreter differ. */
export async function runProgram(seed: number, device: string, steps = 40): Promise<Outcome> {
  const random = stream(seed);
  const pick = <T>(list: readonly T[]): T => list[Math.floor(random() * list.length)];
  const outcome: Outcome = { reads: 0, stale: 0, failed: 0 };
  const fresh = (): Float32Array => Float32Array.from({ length }, () => f(Math.round((random() * 8 - 4) * 4) / 4));
  const make = (data: Float32Array): Tensor => tensor(data, { shape: [2, columns], device });

  const states: State[] = Array.from({ length: 2 + Math.floor(random() * 2) }, () => {
    const data = fresh();
    // some states start from a computed value
    const computed = random() < 0.5;
    const start = computed ? make(data).mul(2).mul(0.5) : make(data);
    const value: Value = { data, from: [], bad: false, realised: true };
    return { tensor: asState(start), versions: [value], flushed: 0, computed };
  });
  const values: Named[] = [0, 1].map(() => {
    const data = fresh();
    return { tensor: make(data), value: { data, from: [], bad: false, realised: true } };
  });
  let kept: Value[] = [];

  const latest = (s: State): number => s.versions.length - 1;
  const operand = (): { tensor: Tensor; data: Float32Array; source: Source } => {
    if (random() < 0.55) {
      const s = pick(states);
      return { tensor: s.tensor, data: s.versions[latest(s)].data, source: { state: s, version: latest(s) } };
    }
    const v = pick(values);
    return { tensor: v.tensor, data: v.value.data, source: v.value };
  };

  // ---- the oracle
  const readable = (source: Source): boolean => {
    if ("state" in source) {
      const { state, version } = source;
      if (version < state.flushed) return false;
      return version === state.flushed || readable(state.versions[version]);
    }
    return source.realised || source.from.every(readable);
  };
  const fails = (source: Source): boolean => {
    if ("state" in source) return source.version > source.state.flushed && fails(source.state.versions[source.version]);
    return !source.realised && (source.bad || source.from.some(fails));
  };
  const dropPending = (): void => {
    const dropped = (source: Source): boolean =>
      "state" in source ? source.version > source.state.flushed : !source.realised && source.from.some(dropped);
    // what was recorded from an assign that never happened has no meaning any more
    for (let i = values.length - 1; i >= 0; i--) if (dropped(values[i].value)) values.splice(i, 1);
    for (const s of states) s.versions = s.versions.slice(0, s.flushed + 1);
    if (values.length === 0) {
      const data = fresh();
      values.push({ tensor: make(data), value: { data, from: [], bad: false, realised: true } });
    }
  };
  /** What the flush must do; brings the oracle up to date. */
  let flushed = false; // the first flush brings the states' first values
  const expectFlush = (roots: readonly Value[]): "ok" | "stale" | "index" => {
    flushed = true;
    if (!roots.every(readable)) return "stale";
    const owed = kept;
    kept = [];
    if (!owed.every(readable)) return "stale";
    const writing = states.filter((s) => latest(s) > s.flushed);
    const written: Source[] = writing.map((s) => s.versions[latest(s)]);
    if (!written.every(readable)) {
      dropPending();
      return "stale";
    }
    if ([...roots, ...owed, ...written].some(fails)) {
      dropPending();
      return "index";
    }
    for (const v of [...roots, ...owed]) v.realised = true;
    for (const s of writing) s.flushed = latest(s);
    return "ok";
  };
  const attempt = async (run: () => unknown, expected: "ok" | "stale" | "index", what: string) => {
    let got = "ok";
    try {
      await run();
    } catch (error) {
      got =
        error instanceof StaleReadError ? "stale" : error instanceof IndexError ? "index" : `${(error as Error).stack}`;
    }
    assert.equal(got, expected, `seed ${seed}: ${what}`);
    if (expected === "stale") outcome.stale++;
    if (expected === "index") outcome.failed++;
  };
  const compare = (got: ArrayLike<number>, expected: Float32Array, what: string): void => {
    outcome.reads++;
    for (let i = 0; i < length; i++)
      assert.ok(
        Math.abs(got[i] - expected[i]) <= 1e-5 * Math.max(1, Math.abs(expected[i])),
        `seed ${seed}: ${what}: element ${i} is ${got[i]}, expected ${expected[i]}`,
      );
  };
  /** Reads a state: what was assigned last, or after a failed flush what it was before. */
  const readState = async (s: State, what: string): Promise<void> => {
    let expected: "ok" | "stale" | "index" = "ok";
    if (latest(s) > s.flushed || (s.computed && !flushed)) {
      expected = expectFlush([]);
      await attempt(() => s.tensor.data(), expected, what);
    }
    if (expected === "ok") compare(await s.tensor.data(), s.versions[latest(s)].data, what);
  };
  const record = (): Named => {
    const [a, b] = [operand(), operand()];
    const op = pick(operations);
    const data = Float32Array.from(op.eager(a.data, b.data));
    return {
      tensor: op.lazy(a.tensor, b.tensor),
      value: { data, from: op.eager.length < 2 ? [a.source] : [a.source, b.source], bad: false, realised: false },
    };
  };

  for (let step = 0; step < steps; step++) {
    const what = `step ${step}`;
    const dice = random();
    if (dice < 0.35) {
      const made = record();
      if (random() < 0.15) values[Math.floor(random() * values.length)] = made;
      else values.push(made);
      if (random() < 0.15) values.push(made); // two names for one value
    } else if (dice < 0.6) {
      // an assign
      const s = pick(states);
      const now = s.versions[latest(s)];
      const old: Source = { state: s, version: latest(s) };
      const kind = random();
      if (kind < 0.3) {
        const v = operand();
        s.tensor.copy_(v.tensor);
        s.versions.push({ data: v.data, from: [v.source], bad: false, realised: false });
      } else if (kind < 0.55) {
        const v = operand();
        s.tensor.mul_(0.5).add_(v.tensor);
        const halved = Float32Array.from(now.data, (x) => f(x * 0.5));
        s.versions.push({ data: halved, from: [old], bad: false, realised: false });
        const data = halved.map((x, i) =>
          f(x + (v.source === old || ("state" in v.source && v.source.state === s) ? halved[i] : v.data[i])),
        );
        // reading the state itself meant its newest version: add_ came after mul_
        const second: Source =
          "state" in v.source && v.source.state === s ? { state: s, version: latest(s) } : v.source;
        s.versions.push({ data, from: [{ state: s, version: latest(s) }, second], bad: false, realised: false });
      } else if (kind < 0.75) {
        const v = operand();
        s.tensor.setAt([1, slice(null, null, 2)], v.tensor.at(0, slice(0, 2)));
        const data = now.data.slice();
        data[3] = v.data[0];
        data[5] = v.data[1];
        s.versions.push({ data, from: [old, v.source], bad: false, realised: false });
      } else if (kind < 0.93) {
        const by = f(Math.round(random() * 16) / 8);
        s.tensor.setAt([0], by);
        const data = now.data.slice();
        data.fill(by, 0, 3);
        s.versions.push({ data, from: [old], bad: false, realised: false });
      } else {
        const v = operand();
        const index = random() < 0.5 ? [0, 1] : [1, 2]; // 2 is out of range
        s.tensor.copy_(v.tensor.at(tensor(index, { dtype: "int32", device })));
        const bad = index[1] === 2;
        s.versions.push({ data: bad ? v.data : v.data.slice(), from: [v.source], bad, realised: false });
      }
    } else if (dice < 0.68) {
      const v = pick(values);
      v.tensor.keep();
      if (!v.value.realised) kept.push(v.value);
    } else if (dice < 0.74) {
      // in place on a plain tensor: it means another value from here on, others keep theirs
      const v = pick(values);
      const other = operand();
      const source = v.value;
      const data = Float32Array.from(source.data, (x, i) => f(x + other.data[i]));
      const target = new Tensor(v.tensor.node);
      target.add_(other.tensor);
      values.push({ tensor: target, value: { data, from: [source, other.source], bad: false, realised: false } });
    } else if (dice < 0.84) {
      await attempt(() => flush(device), expectFlush([]), `${what}: flush`);
    } else if (dice < 0.94) {
      const v = pick(values); // often recorded long ago
      const expected = expectFlush(v.value.realised ? [] : [v.value]);
      if (v.value.realised && expected !== "ok") await attempt(() => flush(device), expected, `${what}: flush`);
      else {
        let got: ArrayLike<number> = [];
        await attempt(async () => void (got = await v.tensor.data()), expected, `${what}: read`);
        if (v.value.realised) await attempt(() => flush(device), "ok", `${what}: flush`);
        if (expected === "ok") compare(got, v.value.data, `${what}: read`);
      }
    } else await readState(pick(states), `${what}: state`);
  }
  // whatever is still owed, until a flush goes through
  for (let expected = "stale" as "ok" | "stale" | "index"; expected !== "ok"; ) {
    expected = expectFlush([]);
    await attempt(() => flush(device), expected, "at the end");
  }
  for (const s of states) await readState(s, "state at the end");
  return outcome;
}
