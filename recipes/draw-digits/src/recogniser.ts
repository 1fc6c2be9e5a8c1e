/** Reads the drawing while it grows: always the newest, one at a time, however slow the device is. */
import type { Trainer } from "./model.ts";

/** The probabilities of the ten digits, "reading" while there are none yet; null for an empty sheet. */
export type Answer = readonly number[] | "reading" | null;

export class Recogniser {
  readonly #show: (answer: Answer) => void;
  readonly #failed: (error: Error) => void;
  #drawing: Float32Array | null = null;
  #busy = false;
  #again = false;
  #answered = false;

  constructor(show: (answer: Answer) => void, failed: (error: Error) => void) {
    this.#show = show;
    this.#failed = failed;
  }

  /** Reads `drawing`, as `normalise` gives it; without a trainer, when there is one (`again`). */
  read(trainer: Trainer | undefined, drawing: Float32Array | null): void {
    this.#drawing = drawing;
    this.again(trainer);
  }

  /** Reads the last drawing once more, by what the network knows now. */
  again(trainer: Trainer | undefined): void {
    if (this.#drawing === null) {
      this.#answered = false;
      this.#show(null);
    } else if (this.#busy) this.#again = true;
    else if (trainer) void this.#read(trainer, this.#drawing);
  }

  async #read(trainer: Trainer, drawing: Float32Array): Promise<void> {
    this.#busy = true;
    if (!this.#answered) this.#show("reading");
    try {
      const answer = await trainer.recognise(drawing);
      if (this.#drawing !== null) this.#show(answer);
      this.#answered = this.#drawing !== null;
    } catch (error) {
      this.#again = false;
      this.#failed(error as Error);
    } finally {
      this.#busy = false;
    }
    if (!this.#again) return;
    this.#again = false;
    this.again(trainer);
  }
}
