/** One training run: it goes on until it is paused, measures and saves itself now and then, and can be taken up again. */
import { getRngState, manualSeed, setDevice, setRngState } from "nabla";
import { Curve } from "./curve.ts";
import type { DigitSets } from "./digits.ts";
import { accuracyOf, Trainer } from "./model.ts";
import { readTensors, type Snapshot, writeTensors } from "./snapshot.ts";

/** What a run is doing; the page says it. */
export type Phase = "idle" | "preparing" | "training" | "evaluating";

const curveLength = 300;
const seed = 1;

/** It measures itself after 25 steps, to have something to show, then every 100. */
const isMeasured = (step: number): boolean => step === 25 || step % 100 === 0;

export class Session {
  step = 0;
  phase: Phase = "idle";
  loss = new Curve(curveLength);
  accuracy = new Curve(curveLength);
  /** [10 × 10] counts of the last evaluation: row by what the digits are, column by what was read. */
  matrix: Uint32Array | null = null;
  readonly trainer: Trainer;
  readonly #digits: DigitSets;
  /** Told when a phase begins, and of every step. */
  readonly #changed: (session: Session) => void;
  readonly #save: (snapshot: Promise<Snapshot>) => void;
  #running = false;
  #prepared = false;

  /** A run on `device`, from the start or from where `snapshot` was taken. */
  constructor(
    device: string,
    digits: DigitSets,
    snapshot: Snapshot | null,
    events: { changed(session: Session): void; save(snapshot: Promise<Snapshot>): void },
  ) {
    setDevice(device);
    manualSeed(seed);
    this.trainer = new Trainer(digits.train);
    this.#digits = digits;
    this.#changed = events.changed;
    this.#save = events.save;
    if (!snapshot) return;
    writeTensors(this.trainer, snapshot.tensors, snapshot.step);
    setRngState(snapshot.random);
    this.step = snapshot.step;
    this.loss = new Curve(curveLength, snapshot.loss);
    this.accuracy = new Curve(curveLength, snapshot.accuracy);
    this.matrix = snapshot.matrix && Uint32Array.from(snapshot.matrix);
  }

  #enter(phase: Phase): void {
    this.phase = phase;
    this.#changed(this);
  }

  /** Trains until `pause` is called. Throws what the device throws; then what was saved last is still there. */
  async run(): Promise<void> {
    this.#running = true;
    this.#enter(this.#prepared ? "training" : "preparing");
    try {
      while (this.#running) {
        const loss = await this.trainer.step(this.step);
        const step = ++this.step;
        // the loss is not waited for, so that the device always has the next step; a failure is the next step's too
        const read = loss.item().then((value) => this.loss.add(step, value));
        if (this.#prepared) read.catch(() => {});
        else await read;
        this.#prepared = true;
        if (isMeasured(step)) await this.#measure();
        this.#enter("training");
      }
    } finally {
      this.#running = false;
      this.#enter("idle");
    }
    this.#save(this.snapshot());
  }

  pause(): void {
    this.#running = false;
  }

  async #measure(): Promise<void> {
    this.#enter("evaluating");
    this.matrix = await this.trainer.evaluate(this.#digits.heldOut);
    this.accuracy.add(this.step, accuracyOf(this.matrix));
    this.#save(this.snapshot());
  }

  /** All that the next step depends on, as it is now. */
  async snapshot(): Promise<Snapshot> {
    const { step, trainer, matrix } = this;
    const random = getRngState();
    const tensors = await readTensors(trainer); // what it reads is fixed before it waits
    return {
      step,
      random,
      loss: this.loss.state(),
      accuracy: this.accuracy.state(),
      matrix: matrix && [...matrix],
      tensors,
    };
  }
}
