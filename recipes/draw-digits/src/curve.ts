/** A curve of bounded length: when it grows too long, neighbours become one point. */

export interface Point {
  readonly step: number;
  readonly value: number;
}

export interface CurveState {
  readonly every: number;
  readonly points: readonly Point[];
}

export class Curve {
  /** How many values make a point. */
  #every = 1;
  #points: Point[] = [];
  #sum = 0;
  #count = 0;
  readonly #most: number;

  constructor(most: number, state?: CurveState) {
    this.#most = most;
    if (!state) return;
    this.#every = state.every;
    this.#points = [...state.points];
  }

  get points(): readonly Point[] {
    return this.#points;
  }

  add(step: number, value: number): void {
    this.#sum += value;
    this.#count++;
    if (this.#count < this.#every) return;
    this.#points.push({ step, value: this.#sum / this.#count });
    this.#sum = this.#count = 0;
    if (this.#points.length >= this.#most) this.#halve();
  }

  #halve(): void {
    const points: Point[] = [];
    for (let i = 1; i < this.#points.length; i += 2) {
      const [a, b] = [this.#points[i - 1], this.#points[i]];
      points.push({ step: b.step, value: (a.value + b.value) / 2 });
    }
    this.#points = points;
    this.#every *= 2;
  }

  /** What `new Curve(most, state)` goes on from; the values of a point that is not full are left out. */
  state(): CurveState {
    return { every: this.#every, points: this.#points };
  }
}
