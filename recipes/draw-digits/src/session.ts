/** One training run: it goes on until it is paused, measures and saves itself now and then, and can be taken up again. */
import { getRngState, manualSeed, setDevice, setRngState } from "nabla";
import type { Source } from "nabla/formats";
import { Curve } from "./curve.ts";
import type { DigitSets } from "./digits.ts";
import { accuracyOf, Trainer } from "./model.ts";
import { loadRun, readRun, saveRun } from "./saved.ts";

/** What a run is doing; the page says it. */
export type Phase = "idle" | "preparing" | "training" | "evaluating" | "saving";

/** What the page is told. */
export interface Events {
  /** A phase has begun, or a step is done. */
  changed(session: Session): void;
  /** The run is kept in memory only, for this reason. */
  notSaved(reason: Error): void;
}

const curveLength = 300;
const seed = 1;

/** It measures itself after 25 steps, to have something to show, then every 100. */
const isMeasured = (step: number): boolean => step === 25 || step % 100 === 0;
/** It saves itself when it has first been measured, and then about this often, in milliseconds. */
const saveEvery = 10_000;

export class Session {
  step = 0;
  phase: Phase = "idle";
  loss = new Curve(curveLength);
  accuracy = new Curve(curveLength);
  /** [10 × 10] counts of the last evaluation: row by what the digits are, column by what was read. */
  matrix: Uint32Array | null = null;
  /** The last state that was saved: where it is, and of which step. */
  saved: { readonly source: Source; readonly step: number } | null = null;
  readonly device: string;
  readonly trainer: Trainer;
  readonly #digits: DigitSets;
  readonly #events: Events;
  #running = false;
  #prepared = false;
  #saveSoon = false;
  #savedAt = Number.NEGATIVE_INFINITY;

  private constructor(device: string, digits: DigitSets, events: Events) {
    setDevice(device);
    manualSeed(seed);
    this.device = device;
    this.trainer = new Trainer(digits.train);
    this.#digits = digits;
    this.#events = events;
  }

  /** A run on `device`: from the start, or where `source` is given and has one, from there. */
  static async open(device: string, digits: DigitSets, source: Source | null, events: Events): Promise<Session> {
    const session = new Session(device, digits, events);
    const state = source === null ? null : await readRun(source);
    if (source === null || state === null) return session;
    await loadRun(session.trainer, source, state.step);
    setRngState(state.random);
    session.step = state.step;
    session.saved = { source, step: state.step };
    session.loss = new Curve(curveLength, state.loss);
    session.accuracy = new Curve(curveLength, state.accuracy);
    session.matrix = state.matrix && Uint32Array.from(state.matrix);
    return session;
  }

  #enter(phase: Phase): void {
    this.phase = phase;
    this.#events.changed(this);
  }

  /** Trains until `pause` is called, and saves. Throws what the device throws; what was saved last stays. */
  async run(): Promise<void> {
    this.#running = true;
    this.#enter(this.#prepared ? "training" : "preparing");
    try {
      while (this.#running) await this.#step();
      await this.#save();
    } finally {
      this.#running = false;
      this.#enter("idle");
    }
  }

  pause(): void {
    this.#running = false;
  }

  /** Saves after the step that is being made: for a page that may not come back. */
  saveSoon(): void {
    this.#saveSoon = true;
  }

  async #step(): Promise<void> {
    const loss = await this.trainer.step(this.step);
    const step = ++this.step;
    // the loss is not waited for, so that the device always has the next step; if it fails, so does a later step
    const read = loss.item().then((value) => this.loss.add(step, value));
    if (this.#prepared) read.catch(() => {});
    else await read;
    this.#prepared = true;
    if (isMeasured(step)) await this.#measure();
    const isOld = this.matrix !== null && performance.now() - this.#savedAt > saveEvery;
    if (isOld || this.#saveSoon) await this.#save();
    this.#enter("training");
  }

  async #measure(): Promise<void> {
    this.#enter("evaluating");
    this.matrix = await this.trainer.evaluate(this.#digits.heldOut);
    this.accuracy.add(this.step, accuracyOf(this.matrix));
  }

  async #save(): Promise<void> {
    this.#enter("saving");
    this.#saveSoon = false;
    const { step, matrix } = this;
    const { source, reason } = await saveRun(this.trainer, {
      step,
      random: getRngState(),
      loss: this.loss.state(),
      accuracy: this.accuracy.state(),
      matrix: matrix && [...matrix],
    });
    this.saved = { source, step };
    this.#savedAt = performance.now();
    if (reason) this.#events.notSaved(reason);
  }
}
