/**
 * Learning-rate schedules (torch.optim.lr_scheduler), each a formula in closed form: from a group's base rate and the number
 * of calls of `step()` so far to its rate. A schedule sets rates when it is made and at each `step()`, which follows
 * the optimiser's. Rates are runtime scalars; nothing compiles anew.
 */
import { NablaError } from "../core/errors.ts";

/** Any optimiser; schedules touch the groups' `lr` only. */
export interface Scheduled {
  readonly paramGroups: readonly { lr: number; initialLr?: number }[];
}

export interface ScheduleState {
  readonly lastEpoch: number;
  readonly baseLrs: readonly number[];
}

function expectCount(of: object, what: string, n: number): void {
  if (!Number.isInteger(n) || n < 1)
    throw new NablaError(`${of.constructor.name}: ${what} must be a whole number ≥ 1, got ${n}`);
}

/** What all schedules share. `epoch` below is the number of calls of step() so far, whatever a step stands for. */
export abstract class LRScheduler {
  readonly optimizer: Scheduled;
  /** The groups' rates when their first schedule was made; a group remembers its own as `initialLr`. */
  baseLrs: number[];
  lastEpoch = 0;

  constructor(optimizer: Scheduled) {
    if (!Array.isArray(optimizer?.paramGroups))
      throw new NablaError(`${this.constructor.name}: takes an optimiser, got ${typeof optimizer}`);
    this.optimizer = optimizer;
    this.baseLrs = optimizer.paramGroups.map((g) => (g.initialLr ??= g.lr));
  }

  /** The rate after `epoch` steps of group number `group`, whose base rate is `base`. */
  abstract rate(base: number, epoch: number, group: number): number;

  /** One step on: sets the groups' rates. */
  step(): void {
    this.lastEpoch++;
    this.apply();
  }

  /** Sets the groups' rates to those of `lastEpoch`. */
  protected apply(): void {
    this.optimizer.paramGroups.forEach((group, i) => {
      // a group that was added later starts from its own rate
      this.baseLrs[i] ??= group.initialLr ??= group.lr;
      group.lr = this.rate(this.baseLrs[i], this.lastEpoch, i);
    });
  }

  getLastLr(): number[] {
    return this.optimizer.paramGroups.map((g) => g.lr);
  }

  stateDict(): ScheduleState {
    return { lastEpoch: this.lastEpoch, baseLrs: [...this.baseLrs] };
  }
  /** Goes on where the state was saved; the optimiser's own state brings the rates, and this sets them again. */
  loadStateDict(state: ScheduleState): void {
    this.lastEpoch = state.lastEpoch;
    this.baseLrs = [...state.baseLrs];
    this.apply();
  }
}

/** The base rate times `lrLambda(epoch)`; a list gives each group its own. */
export class LambdaLR extends LRScheduler {
  readonly #lambdas: readonly ((epoch: number) => number)[];
  constructor(
    optimizer: Scheduled,
    options:
      | ((epoch: number) => number)
      | { readonly lrLambda: ((epoch: number) => number) | readonly ((epoch: number) => number)[] },
  ) {
    super(optimizer);
    const given = typeof options === "function" ? options : options.lrLambda;
    this.#lambdas = typeof given === "function" ? this.baseLrs.map(() => given) : given;
    if (this.#lambdas.length !== this.baseLrs.length)
      throw new NablaError(`LambdaLR: ${this.#lambdas.length} functions for ${this.baseLrs.length} groups`);
    this.apply();
  }
  rate(base: number, epoch: number, group: number): number {
    return base * (this.#lambdas[group] ?? this.#lambdas[0])(epoch);
  }
}

/** Times `gamma` every `stepSize` epochs. */
export class StepLR extends LRScheduler {
  readonly stepSize: number;
  readonly gamma: number;
  constructor(optimizer: Scheduled, options: { readonly stepSize: number; readonly gamma?: number }) {
    super(optimizer);
    this.stepSize = options.stepSize;
    this.gamma = options.gamma ?? 0.1;
    expectCount(this, "stepSize", this.stepSize);
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return base * this.gamma ** Math.floor(epoch / this.stepSize);
  }
}

/** Times `gamma` at each of the `milestones`. */
export class MultiStepLR extends LRScheduler {
  readonly milestones: readonly number[];
  readonly gamma: number;
  constructor(optimizer: Scheduled, options: { readonly milestones: readonly number[]; readonly gamma?: number }) {
    super(optimizer);
    this.milestones = options.milestones;
    this.gamma = options.gamma ?? 0.1;
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return base * this.gamma ** this.milestones.filter((m) => m <= epoch).length;
  }
}

/** Times `gamma` every epoch. */
export class ExponentialLR extends LRScheduler {
  readonly gamma: number;
  constructor(optimizer: Scheduled, options: { readonly gamma: number }) {
    super(optimizer);
    this.gamma = options.gamma;
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return base * this.gamma ** epoch;
  }
}

/** Times `factor` for the first `totalIters` epochs. */
export class ConstantLR extends LRScheduler {
  readonly factor: number;
  readonly totalIters: number;
  constructor(optimizer: Scheduled, options: { readonly factor?: number; readonly totalIters?: number } = {}) {
    super(optimizer);
    this.factor = options.factor ?? 1 / 3;
    this.totalIters = options.totalIters ?? 5;
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return epoch < this.totalIters ? base * this.factor : base;
  }
}

/** A straight line from `startFactor` to `endFactor` of the base rate over `totalIters` epochs: a warm-up. */
export class LinearLR extends LRScheduler {
  readonly startFactor: number;
  readonly endFactor: number;
  readonly totalIters: number;
  constructor(
    optimizer: Scheduled,
    options: { readonly startFactor?: number; readonly endFactor?: number; readonly totalIters?: number } = {},
  ) {
    super(optimizer);
    this.startFactor = options.startFactor ?? 1 / 3;
    this.endFactor = options.endFactor ?? 1;
    this.totalIters = options.totalIters ?? 5;
    if (!(this.startFactor > 0 && this.startFactor <= 1))
      throw new NablaError(`LinearLR: startFactor must be above 0 and at most 1, got ${this.startFactor}`);
    this.apply();
  }
  rate(base: number, epoch: number): number {
    const { startFactor, endFactor, totalIters } = this;
    return base * (startFactor + (endFactor - startFactor) * Math.min(1, epoch / totalIters));
  }
}

/** Down to `etaMin` in `tMax` epochs along half a cosine, and up again (Loshchilov & Hutter 2017, without restarts). */
export class CosineAnnealingLR extends LRScheduler {
  readonly tMax: number;
  readonly etaMin: number;
  constructor(optimizer: Scheduled, options: { readonly tMax: number; readonly etaMin?: number }) {
    super(optimizer);
    this.tMax = options.tMax;
    this.etaMin = options.etaMin ?? 0;
    expectCount(this, "tMax", this.tMax);
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return this.etaMin + ((base - this.etaMin) * (1 + Math.cos((Math.PI * epoch) / this.tMax))) / 2;
  }
}

/** Cosine annealing that starts again after t0, t0 · tMult, t0 · tMult² … epochs (Loshchilov & Hutter 2017). */
export class CosineAnnealingWarmRestarts extends LRScheduler {
  readonly t0: number;
  readonly tMult: number;
  readonly etaMin: number;
  constructor(
    optimizer: Scheduled,
    options: { readonly t0: number; readonly tMult?: number; readonly etaMin?: number },
  ) {
    super(optimizer);
    this.t0 = options.t0;
    this.tMult = options.tMult ?? 1;
    this.etaMin = options.etaMin ?? 0;
    expectCount(this, "t0", this.t0);
    expectCount(this, "tMult", this.tMult);
    this.apply();
  }
  rate(base: number, epoch: number): number {
    let length = this.t0;
    let at = epoch;
    while (at >= length) {
      at -= length;
      length *= this.tMult;
    }
    return this.etaMin + ((base - this.etaMin) * (1 + Math.cos((Math.PI * at) / length))) / 2;
  }
}

/** base · (1 − epoch / totalIters)^power, then 0. */
export class PolynomialLR extends LRScheduler {
  readonly totalIters: number;
  readonly power: number;
  constructor(optimizer: Scheduled, options: { readonly totalIters?: number; readonly power?: number } = {}) {
    super(optimizer);
    this.totalIters = options.totalIters ?? 5;
    this.power = options.power ?? 1;
    this.apply();
  }
  rate(base: number, epoch: number): number {
    return base * (1 - Math.min(epoch, this.totalIters) / this.totalIters) ** this.power;
  }
}

export interface OneCycleOptions {
  readonly maxLr: number;
  readonly totalSteps: number;
  /** The share of the steps in which the rate rises. Default: 0.3. */
  readonly pctStart?: number;
  readonly annealStrategy?: "cos" | "linear";
  /** The first rate is maxLr / divFactor. Default: 25. */
  readonly divFactor?: number;
  /** The last rate is the first one / finalDivFactor. Default: 1e4. */
  readonly finalDivFactor?: number;
  /** Down to the first rate symmetrically, then to the last. */
  readonly threePhase?: boolean;
}

/** One rise and one fall over the whole training (Smith & Topin 2017); the rates alone, momentum stays. */
export class OneCycleLR extends LRScheduler {
  readonly totalSteps: number;
  readonly #phases: readonly { readonly end: number; readonly from: number; readonly to: number }[];
  readonly #cosine: boolean;
  constructor(optimizer: Scheduled, options: OneCycleOptions) {
    super(optimizer);
    const { maxLr, totalSteps, pctStart = 0.3, annealStrategy = "cos", threePhase = false } = options;
    const { divFactor = 25, finalDivFactor = 1e4 } = options;
    expectCount(this, "totalSteps", totalSteps);
    this.totalSteps = totalSteps;
    this.#cosine = annealStrategy === "cos";
    const first = maxLr / divFactor;
    const last = first / finalDivFactor;
    const top = pctStart * totalSteps - 1;
    this.#phases = threePhase
      ? [
          { end: top, from: first, to: maxLr },
          { end: 2 * pctStart * totalSteps - 2, from: maxLr, to: first },
          { end: totalSteps - 1, from: first, to: last },
        ]
      : [
          { end: top, from: first, to: maxLr },
          { end: totalSteps - 1, from: maxLr, to: last },
        ];
    this.apply();
  }
  rate(_: number, epoch: number): number {
    if (epoch > this.totalSteps)
      throw new NablaError(`OneCycleLR: step ${epoch} of a cycle of ${this.totalSteps}; give a larger totalSteps`);
    let start = 0;
    for (const [i, { end, from, to }] of this.#phases.entries()) {
      if (epoch <= end || i === this.#phases.length - 1) {
        const share = (epoch - start) / (end - start);
        return this.#cosine ? to + ((from - to) / 2) * (1 + Math.cos(Math.PI * share)) : from + (to - from) * share;
      }
      start = end;
    }
    return 0;
  }
}

/** Schedules one after the other, changing at the `milestones`; each counts from its own beginning. */
export class SequentialLR extends LRScheduler {
  readonly schedulers: readonly LRScheduler[];
  readonly milestones: readonly number[];
  constructor(
    optimizer: Scheduled,
    options: { readonly schedulers: readonly LRScheduler[]; readonly milestones: readonly number[] },
  ) {
    super(optimizer);
    const { schedulers, milestones } = options;
    if (schedulers.length === 0 || milestones.length !== schedulers.length - 1)
      throw new NablaError(
        `SequentialLR: ${schedulers.length} schedules need ${Math.max(0, schedulers.length - 1)} milestones, got ${milestones.length}`,
      );
    if (schedulers.some((s) => s.optimizer !== optimizer))
      throw new NablaError("SequentialLR: all schedules must be of the same optimiser");
    this.schedulers = schedulers;
    this.milestones = milestones;
    this.apply();
  }
  rate(base: number, epoch: number, group: number): number {
    const at = this.milestones.filter((m) => m <= epoch).length;
    return this.schedulers[at].rate(base, epoch - (at === 0 ? 0 : this.milestones[at - 1]), group);
  }
}

export interface WarmupCosineOptions {
  /** Steps of the linear rise from 0 (the first step has base / (warmupSteps + 1)). */
  readonly warmupSteps: number;
  /** Steps after which the rate stays at its least. */
  readonly totalSteps: number;
  /** The least rate as a share of the base rate. Default: 0.1. */
  readonly minRatio?: number;
}

/** A linear warm-up, then half a cosine down to `minRatio` of the base rate: what language models are trained with. */
export function warmupCosine(optimizer: Scheduled, options: WarmupCosineOptions): LambdaLR {
  const { warmupSteps, totalSteps, minRatio = 0.1 } = options;
  if (!(warmupSteps >= 0 && totalSteps > warmupSteps))
    throw new NablaError(`warmupCosine: needs 0 ≤ warmupSteps < totalSteps, got ${warmupSteps} and ${totalSteps}`);
  return new LambdaLR(optimizer, (step) => {
    if (step < warmupSteps) return (step + 1) / (warmupSteps + 1);
    const share = Math.min(1, (step - warmupSteps) / (totalSteps - warmupSteps));
    return minRatio + ((1 - minRatio) * (1 + Math.cos(Math.PI * share))) / 2;
  });
}

export interface PlateauOptions {
  readonly mode?: "min" | "max";
  readonly factor?: number;
  /** Epochs without improvement that are borne. Default: 10. */
  readonly patience?: number;
  readonly threshold?: number;
  readonly thresholdMode?: "rel" | "abs";
  /** Epochs after a reduction in which none is counted. */
  readonly cooldown?: number;
  readonly minLr?: number;
  /** A smaller change of the rate is left out. Default: 1e-8. */
  readonly eps?: number;
}

/** Times `factor` when a metric has stopped improving; `step(metric)` once an epoch. */
export class ReduceLROnPlateau {
  readonly optimizer: Scheduled;
  readonly #options: Required<PlateauOptions>;
  best: number;
  badEpochs = 0;
  cooldownCounter = 0;
  lastEpoch = 0;
  constructor(optimizer: Scheduled, options: PlateauOptions = {}) {
    const { mode = "min", factor = 0.1, patience = 10, threshold = 1e-4, thresholdMode = "rel" } = options;
    const { cooldown = 0, minLr = 0, eps = 1e-8 } = options;
    if (!(factor < 1)) throw new NablaError(`ReduceLROnPlateau: factor must be below 1, got ${factor}`);
    this.optimizer = optimizer;
    this.#options = { mode, factor, patience, threshold, thresholdMode, cooldown, minLr, eps };
    this.best = mode === "min" ? Number.POSITIVE_INFINITY : Number.NEGATIVE_INFINITY;
  }
  #improves(metric: number): boolean {
    const { mode, threshold, thresholdMode } = this.#options;
    const sign = mode === "min" ? -1 : 1;
    const bar = thresholdMode === "rel" ? this.best * (1 + sign * threshold) : this.best + sign * threshold;
    return mode === "min" ? metric < bar : metric > bar;
  }
  step(metric: number): void {
    const { patience, cooldown, factor, minLr, eps } = this.#options;
    this.lastEpoch++;
    if (this.#improves(metric)) {
      this.best = metric;
      this.badEpochs = 0;
    } else this.badEpochs++;
    if (this.cooldownCounter > 0) {
      this.cooldownCounter--;
      this.badEpochs = 0;
    }
    if (this.badEpochs <= patience) return;
    for (const group of this.optimizer.paramGroups) {
      const next = Math.max(group.lr * factor, minLr);
      if (group.lr - next > eps) group.lr = next;
    }
    this.cooldownCounter = cooldown;
    this.badEpochs = 0;
  }
  getLastLr(): number[] {
    return this.optimizer.paramGroups.map((g) => g.lr);
  }
  stateDict(): { best: number; badEpochs: number; cooldownCounter: number; lastEpoch: number } {
    const { best, badEpochs, cooldownCounter, lastEpoch } = this;
    return { best, badEpochs, cooldownCounter, lastEpoch };
  }
  loadStateDict(state: ReturnType<ReduceLROnPlateau["stateDict"]>): void {
    Object.assign(this, state);
  }
}
