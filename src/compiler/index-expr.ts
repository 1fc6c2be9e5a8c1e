/**
 * Integer expressions over loop axes: where in its source a kernel reads. Movement operations are rewritten into these
 * (see `views.ts`), so a reshape of a transpose of a slice costs arithmetic, or nothing.
 *
 * An expression is a sum of coefficient · atom and a constant; an atom is an axis, a floor division, a remainder, or an
 * integer found at run time. Sums are kept canonical, so that two equal expressions have the same key:
 *   (c·q + r) div c = q + r div c,   (c·q + r) mod c = r mod c,   c·(x div c) + x mod c = x,
 *   (s + x div a) div b = (a·s + x) div ab,   (s + x mod ab) mod b = (s + x) mod b.
 */

export type Atom =
  | { readonly kind: "axis"; readonly key: string; readonly name: string; readonly extent: number }
  | { readonly kind: "div" | "mod"; readonly key: string; readonly of: Index; readonly by: number }
  /** An expression that the surrounding condition holds in 0 … extent−1, whatever its own range. */
  | { readonly kind: "bounded"; readonly key: string; readonly of: Index; readonly extent: number }
  /** A run-time integer in 0 … extent−1; `value` is the kernel value that computes it. */
  | { readonly kind: "value"; readonly key: string; readonly value: unknown; readonly extent: number };

interface Term {
  readonly atom: Atom;
  readonly coefficient: number;
}

export interface Index {
  readonly key: string;
  readonly constant: number;
  readonly terms: readonly Term[];
  readonly min: number;
  readonly max: number;
}

function range(atom: Atom): [number, number] {
  if (atom.kind === "axis" || atom.kind === "value" || atom.kind === "bounded")
    return [0, Math.max(0, atom.extent - 1)];
  const { of, by } = atom;
  if (atom.kind === "div") return [Math.floor(of.min / by), Math.floor(of.max / by)];
  return [0, by - 1];
}

function build(constant: number, terms: Term[]): Index {
  const sorted = terms.filter((t) => t.coefficient !== 0).sort((a, b) => (a.atom.key < b.atom.key ? -1 : 1));
  let min = constant;
  let max = constant;
  let key = String(constant);
  for (const { atom, coefficient } of sorted) {
    const [lo, hi] = range(atom);
    min += coefficient * (coefficient > 0 ? lo : hi);
    max += coefficient * (coefficient > 0 ? hi : lo);
    key += `+${coefficient}*${atom.key}`;
  }
  return { key, constant, terms: sorted, min, max };
}

/** Merges equal atoms, then puts quotients and remainders of one expression together again. */
function normal(constant: number, terms: readonly Term[]): Index {
  const sum = new Map<string, Term>();
  for (const t of terms) {
    const old = sum.get(t.atom.key);
    sum.set(t.atom.key, old ? { atom: t.atom, coefficient: old.coefficient + t.coefficient } : t);
  }
  for (const { atom, coefficient } of [...sum.values()]) {
    if (atom.kind !== "mod" || coefficient === 0) continue;
    const quotient = div(atom.of, atom.by);
    if (quotient.terms.length !== 1 || quotient.terms[0].coefficient !== 1) continue;
    const partner = sum.get(quotient.terms[0].atom.key);
    if (!partner || partner.coefficient !== coefficient * atom.by) continue;
    sum.delete(atom.key);
    sum.delete(partner.atom.key);
    // by·(x div by − turns) + x mod by = x − turns·by
    return normal(constant + coefficient * (atom.of.constant - quotient.constant * atom.by), [
      ...sum.values(),
      ...atom.of.terms.map((t) => ({ atom: t.atom, coefficient: t.coefficient * coefficient })),
    ]);
  }
  return build(constant, [...sum.values()]);
}

export const constantIndex = (n: number): Index => build(n, []);

/** A loop axis of `extent` steps. An axis of one step is 0. */
export const axis = (name: string, extent: number): Index =>
  extent === 1 ? constantIndex(0) : build(0, [{ atom: { kind: "axis", key: name, name, extent }, coefficient: 1 }]);

export const valueIndex = (value: unknown, key: string, extent: number): Index =>
  build(0, [{ atom: { kind: "value", key: `$${key}|${extent}`, value, extent }, coefficient: 1 }]);

/** `x`, known to lie in 0 … extent−1 wherever it is used. */
export const bounded = (x: Index, extent: number): Index =>
  extent === 1
    ? constantIndex(0)
    : x.min >= 0 && x.max < extent
      ? x
      : build(0, [{ atom: { kind: "bounded", key: `<${x.key}|${extent}>`, of: x, extent }, coefficient: 1 }]);

export const add = (a: Index, b: Index): Index => normal(a.constant + b.constant, [...a.terms, ...b.terms]);

export const scale = (a: Index, k: number): Index =>
  k === 1
    ? a
    : normal(
        a.constant * k,
        a.terms.map((t) => ({ atom: t.atom, coefficient: t.coefficient * k })),
      );

export const offset = (a: Index, k: number): Index => (k === 0 ? a : build(a.constant + k, a.terms.slice()));

function split(x: Index, by: number): { quotient: Index; rest: Index } {
  const whole = Math.floor(x.constant / by);
  const multiples = x.terms.filter((t) => t.coefficient % by === 0);
  return {
    quotient: build(
      whole,
      multiples.map((t) => ({ atom: t.atom, coefficient: t.coefficient / by })),
    ),
    rest: build(
      x.constant - whole * by,
      x.terms.filter((t) => t.coefficient % by !== 0),
    ),
  };
}

const gcd = (a: number, b: number): number => (b === 0 ? Math.abs(a) : gcd(b, a % b));

/** x as g·high + low with 0 ≤ low < g for the largest such g > 1 that divides `by`: the low part then never carries. */
function carryFree(x: Index, by: number): { g: number; high: Index; low: Index } | null {
  const candidates = new Set(x.terms.map((t) => gcd(by, t.coefficient)).filter((g) => g > 1));
  for (const g of [...candidates].sort((a, b) => b - a)) {
    const { quotient, rest } = split(x, g);
    if (rest.min >= 0 && rest.max < g) return { g, high: quotient, low: rest };
  }
  return null;
}

export function div(x: Index, by: number): Index {
  if (by === 1) return x;
  const { quotient, rest } = split(x, by);
  if (rest.min >= 0 && rest.max < by) return quotient;
  const parts = carryFree(rest, by);
  if (parts) return add(quotient, div(parts.high, by / parts.g));
  // s + y div k = (k·s + y) div k: one division instead of two
  const quotients = rest.terms.filter((t) => t.atom.kind === "div" && t.coefficient === 1);
  if (quotients.length === 1) {
    const { of, by: k } = quotients[0].atom as { of: Index; by: number };
    const others = normal(
      rest.constant,
      rest.terms.filter((t) => t !== quotients[0]),
    );
    return add(quotient, div(add(scale(others, k), of), k * by));
  }
  const low = Math.floor(rest.min / by);
  if (low === Math.floor(rest.max / by)) return offset(quotient, low);
  const { of, turns } = lifted(rest, by);
  const atom: Atom = { kind: "div", key: `(${of.key})/${by}`, of, by };
  return offset(add(quotient, build(0, [{ atom, coefficient: 1 }])), -turns);
}

/** x with so many multiples of `by` added that it is never negative: machines divide towards zero, we mean the floor. */
function lifted(x: Index, by: number): { of: Index; turns: number } {
  const turns = x.min < 0 ? Math.ceil(-x.min / by) : 0;
  return { of: offset(x, turns * by), turns };
}

export function mod(x: Index, by: number): Index {
  if (by === 1) return constantIndex(0);
  const { rest } = split(x, by);
  if (rest.min >= 0 && rest.max < by) return rest;
  const parts = carryFree(rest, by);
  if (parts) return add(scale(mod(parts.high, by / parts.g), parts.g), parts.low);
  const low = Math.floor(rest.min / by);
  if (low === Math.floor(rest.max / by)) return offset(rest, -low * by);
  // c·(y mod k) = c·y (mod by) where by divides c·k
  const inner = rest.terms.find((t) => t.atom.kind === "mod" && (t.coefficient * t.atom.by) % by === 0);
  if (inner) {
    const { of } = inner.atom as { of: Index };
    return mod(
      add(
        build(
          rest.constant,
          rest.terms.filter((t) => t !== inner),
        ),
        scale(of, inner.coefficient),
      ),
      by,
    );
  }
  const { of } = lifted(rest, by);
  return build(0, [{ atom: { kind: "mod", key: `(${of.key})%${by}`, of, by }, coefficient: 1 }]);
}

/** The coefficients of the axes if the expression is affine in axes alone, else null. */
export function affine(x: Index): { constant: number; coefficients: Map<string, number> } | null {
  const coefficients = new Map<string, number>();
  for (const { atom, coefficient } of x.terms) {
    if (atom.kind !== "axis") return null;
    coefficients.set(atom.name, coefficient);
  }
  return { constant: x.constant, coefficients };
}

/** Kernels take positions along their lanes' axis in blocks that start at multiples of this. */
export const BLOCK = 16;

/**
 * How the expression moves with an axis inside an aligned block of BLOCK positions: its constant step, or null where the
 * step is not constant. A division by a multiple of BLOCK does not change inside a block that starts at one, and a
 * remainder grows by one.
 */
export function stepAlong(x: Index, name: string): number | null {
  let step = 0;
  for (const { atom, coefficient } of x.terms) {
    if (atom.kind === "axis") {
      if (atom.name === name) step += coefficient;
      continue;
    }
    if (!dependsOn(x, name, atom)) continue;
    if (atom.kind === "value") return null;
    const inner = stepAlong(atom.of, name);
    if (inner === null) return null;
    if (atom.kind === "bounded") step += coefficient * inner;
    else {
      if (inner === 0) continue;
      if (inner !== 1 || atom.by % BLOCK !== 0 || !isAligned(atom.of, name)) return null;
      if (atom.kind === "mod") step += coefficient;
    }
  }
  return step;
}

/** Whether lo ≤ x < hi holds for all positions of an aligned block along the axis, or for none. */
export function isUniform(x: Index, lo: number, hi: number, name: string): boolean {
  const step = stepAlong(x, name);
  if (step === 0) return true;
  const aligned = (bound: number): boolean => bound % BLOCK === 0;
  return step === 1 && isAligned(x, name) && (x.min >= lo || aligned(lo)) && (x.max < hi || aligned(hi));
}

/** Whether the expression is a multiple of BLOCK where the axis is one. */
function isAligned(x: Index, name: string): boolean {
  if (x.constant % BLOCK !== 0) return false;
  return x.terms.every(({ atom, coefficient }) => {
    if (coefficient % BLOCK === 0) return true;
    if (atom.kind === "axis") return atom.name === name;
    if (atom.kind === "mod") return atom.by % BLOCK === 0 && isAligned(atom.of, name);
    return atom.kind === "bounded" && isAligned(atom.of, name);
  });
}

export function dependsOn(x: Index, name: string, only?: Atom): boolean {
  for (const { atom } of only ? [{ atom: only }] : x.terms) {
    if (
      atom.kind === "axis"
        ? atom.name === name
        : atom.kind === "value"
          ? valueDepends(atom.value, name)
          : dependsOn(atom.of, name)
    )
      return true;
  }
  return false;
}

/** Kernel values say themselves whether they vary along an axis. */
const valueDepends = (value: unknown, name: string): boolean =>
  (value as { varies(axis: string): boolean }).varies(name);

/** Number of divisions and remainders in the expression, nested ones included. */
export function divisions(x: Index): number {
  let n = 0;
  for (const { atom } of x.terms) {
    if (atom.kind === "div" || atom.kind === "mod") n += 1 + divisions(atom.of);
    else if (atom.kind === "bounded") n += divisions(atom.of);
  }
  return n;
}

/** The expression with its axes replaced. */
export function substitute(x: Index, axes: ReadonlyMap<string, Index>): Index {
  let out = constantIndex(x.constant);
  for (const { atom, coefficient } of x.terms) {
    let part: Index;
    if (atom.kind === "axis") part = axes.get(atom.name) ?? build(0, [{ atom, coefficient: 1 }]);
    else if (atom.kind === "value") part = build(0, [{ atom, coefficient: 1 }]);
    else if (atom.kind === "bounded") part = bounded(substitute(atom.of, axes), atom.extent);
    else part = (atom.kind === "div" ? div : mod)(substitute(atom.of, axes), atom.by);
    out = add(out, scale(part, coefficient));
  }
  return out;
}

/** Row-major position of `index` in `shape`. */
export function linearize(index: readonly Index[], shape: readonly number[]): Index {
  let stride = 1;
  let out = constantIndex(0);
  for (let i = shape.length - 1; i >= 0; i--) {
    if (shape[i] !== 1) out = add(out, scale(index[i], stride));
    stride *= shape[i];
  }
  return out;
}

/** The index vector of row-major position `x` in `shape`. */
export function delinearize(x: Index, shape: readonly number[]): Index[] {
  // nothing is at any position of a shape without elements
  if (shape.includes(0)) return shape.map(() => constantIndex(0));
  const out = new Array<Index>(shape.length);
  let stride = 1;
  const first = shape.findIndex((n) => n !== 1);
  for (let i = shape.length - 1; i >= 0; i--) {
    const whole = div(x, stride);
    out[i] = shape[i] === 1 ? constantIndex(0) : i === first ? whole : mod(whole, shape[i]);
    stride *= shape[i];
  }
  return out;
}
