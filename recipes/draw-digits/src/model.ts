/** The network, and all that is done with it: a training step, an evaluation, the reading of one drawing. */
import { arange, nn, noGrad, optim, randint, type Tensor, tensor } from "nabla";
import { type Digits, size } from "./digits.ts";

/** [batch, 1, 28, 28] → logits [batch, 10]. Two convolutions of stride 2 halve the picture twice, two layers read it. */
export class DigitNet extends nn.Module {
  conv1 = new nn.Conv2d(1, 8, 5, { stride: 2, padding: 2 }); // → [batch, 8, 14, 14]
  conv2 = new nn.Conv2d(8, 16, 3, { stride: 2, padding: 1 }); // → [batch, 16, 7, 7]
  fc1 = new nn.Linear(16 * 7 * 7, 64);
  fc2 = new nn.Linear(64, 10);

  forward(x: Tensor): Tensor {
    x = this.conv1.forward(x).relu();
    x = this.conv2.forward(x).relu();
    return this.fc2.forward(this.fc1.forward(x.flatten(1)).relu());
  }
}

const batchSize = 64;
/** Digits are moved by up to so many pixels each way, so that the network learns that this does not matter. */
const shift = 2;
const padded = size + 2 * shift;

/** Bytes 0 … 255 as numbers 0 … 1. */
const toFloat = (pixels: Tensor): Tensor => pixels.to("float32").div(255);

/** Trains one network on the device that `setDevice` has chosen. The digits go there once, as bytes, and stay. */
export class Trainer {
  readonly model = new DigitNet();
  readonly optimizer = new optim.Adam(this.model.parameters());
  readonly #count: number;
  /** All training pictures in one row, each with a margin of `shift` pixels. */
  readonly #pixels: Tensor;
  readonly #labels: Tensor;
  /** Where the pixels of a picture stand, [28, 28], counted from its upper left corner. */
  readonly #grid = arange(size).unsqueeze(1).mul(padded).add(arange(size));

  constructor({ images, labels, count }: Digits) {
    this.#count = count;
    this.#pixels = tensor(images, { shape: [count, size, size] })
      .pad([shift, shift, shift, shift])
      .flatten();
    this.#labels = tensor(labels, { dtype: "int32" });
  }

  /** A random batch, taken and moved on the device: pictures [batch, 1, 28, 28] and labels [batch]. */
  #batch(): [Tensor, Tensor] {
    const which = randint(0, this.#count, [batchSize]);
    const move = () => randint(0, 2 * shift + 1, [batchSize]);
    const corner = which
      .mul(padded * padded)
      .add(move().mul(padded))
      .add(move());
    const pictures = this.#pixels.take(corner.reshape([batchSize, 1, 1, 1]).add(this.#grid));
    return [toFloat(pictures), this.#labels.take(which)];
  }

  /** Step number `step`. Gives its loss, to be read when it suits; resolves when the device has room for the next step. */
  async step(step: number): Promise<Tensor> {
    // faster at first, finer later; it follows from the step alone, so there is no state of a schedule to save
    this.optimizer.paramGroups[0].lr = 3e-3 / (1 + step / 1000);
    const [pictures, labels] = this.#batch();
    const loss = nn.functional.crossEntropy(this.model.forward(pictures), labels);
    loss.backward();
    await this.optimizer.step();
    this.optimizer.zeroGrad();
    return loss;
  }

  /** Reads digits that it has not been trained on. Gives counts [10 × 10]: row by what they are, column by what it read. */
  async evaluate({ images, labels, count }: Digits): Promise<Uint32Array> {
    const counts = new Uint32Array(100);
    const most = 500; // at a time
    for (let at = 0; at < count; at += most) {
      const n = Math.min(most, count - at);
      const pictures = images.subarray(at * size * size, (at + n) * size * size);
      const read = noGrad(() => this.model.forward(toFloat(tensor(pictures, { shape: [n, 1, size, size] }))).argmax(1));
      for (const [i, digit] of (await read.data()).entries()) counts[labels[at + i] * 10 + Number(digit)]++;
    }
    return counts;
  }

  /** The probabilities of the ten digits for one drawing, 28 × 28 numbers from 0 (paper) to 1 (ink). */
  async recognise(drawing: Float32Array): Promise<number[]> {
    const picture = tensor(drawing, { shape: [1, 1, size, size] });
    const probabilities = noGrad(() => this.model.forward(picture).softmax(1));
    return Array.from(await probabilities.data(), Number);
  }
}

/** The share of right answers in what `evaluate` gives. */
export function accuracyOf(counts: Uint32Array): number {
  let right = 0;
  for (let digit = 0; digit < 10; digit++) right += counts[digit * 11];
  return right / counts.reduce((sum, n) => sum + n, 0);
}
