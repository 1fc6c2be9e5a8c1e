/** The digits: MNIST's files, fetched with progress and unpacked in a worker. */
import { readIdx } from "nabla/data";

/** Height and width of a picture. */
export const size = 28;

export interface Digits {
  readonly count: number;
  /** count × 28 × 28 bytes, 0 (paper) to 255 (ink). */
  readonly images: Uint8Array;
  readonly labels: Uint8Array;
}

export interface DigitSets {
  readonly train: Digits;
  /** Digits that nothing is trained on. */
  readonly heldOut: Digits;
}

const names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"];

/** Loads 60,000 digits to train on, and the first `heldOut` of the 10,000 others, from `folder` beside the page. */
export async function loadDigits(
  folder: string,
  heldOut: number,
  onProgress: (loaded: number, total: number | null) => void,
): Promise<DigitSets> {
  const loaded = names.map(() => 0);
  const totals = names.map((): number | null => null);
  const sum = (list: readonly number[]): number => list.reduce((a, b) => a + b, 0);
  const arrays = names.map((name, i) =>
    readIdx(new URL(`${folder}/${name}-ubyte.gz`, location.href), {
      onProgress: (bytes, total) => {
        loaded[i] = bytes;
        totals[i] = total;
        onProgress(sum(loaded), totals.includes(null) ? null : sum(totals as number[]));
      },
    }),
  );
  const [images, labels, testImages, testLabels] = (await Promise.all(arrays)).map(({ data }) => data as Uint8Array);
  return {
    train: { images, labels, count: labels.length },
    heldOut: {
      images: testImages.subarray(0, heldOut * size * size),
      labels: testLabels.subarray(0, heldOut),
      count: heldOut,
    },
  };
}
