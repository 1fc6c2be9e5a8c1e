/** The digits: fetched with progress, unpacked, and read from their format (IDX). */

/** Height and width of a picture. */
export const size = 28;

export interface Digits {
  readonly count: number;
  /** count × 28 × 28 bytes, 0 (paper) to 255 (ink). */
  readonly images: Uint8Array<ArrayBuffer>;
  readonly labels: Uint8Array<ArrayBuffer>;
}

export interface DigitSets {
  readonly train: Digits;
  /** Digits that nothing is trained on. */
  readonly heldOut: Digits;
}

/** Called with the bytes that have come, and how many there are, where the server has said it. */
export type Progress = (loaded: number, total: number | null) => void;

/** The bytes of several files. `onProgress` hears of them together. */
async function fetchAll(urls: readonly string[], onProgress: Progress): Promise<Uint8Array<ArrayBuffer>[]> {
  const responses = await Promise.all(urls.map((url) => fetch(url)));
  const failed = responses.find(({ ok }) => !ok);
  if (failed) throw new Error(`${failed.url}: the server answered ${failed.status} ${failed.statusText}`);
  const lengths = responses.map(({ headers }) => headers.get("Content-Length"));
  const total = lengths.includes(null) ? null : lengths.reduce((sum, length) => sum + Number(length), 0);
  let loaded = 0;
  const counted = (response: Response): ReadableStream<Uint8Array<ArrayBuffer>> =>
    (response.body as ReadableStream<Uint8Array<ArrayBuffer>>).pipeThrough(
      new TransformStream({
        transform(chunk, controller) {
          loaded += chunk.length;
          onProgress(loaded, total);
          controller.enqueue(chunk);
        },
      }),
    );
  return Promise.all(
    responses.map(async (response) => {
      const unpacked = counted(response).pipeThrough(new DecompressionStream("gzip"));
      return new Uint8Array(await new Response(unpacked).arrayBuffer());
    }),
  );
}

/** The elements of an IDX file of bytes: two zeros, the type (8), the number of axes, the sizes, the elements. */
function parseIdx(bytes: Uint8Array<ArrayBuffer>, name: string): Uint8Array<ArrayBuffer> {
  const view = new DataView(bytes.buffer);
  const axes = bytes[3];
  if (view.getUint16(0) !== 0 || bytes[2] !== 8) throw new Error(`${name}: not an IDX file of bytes`);
  let length = 1;
  for (let axis = 0; axis < axes; axis++) length *= view.getUint32(4 + 4 * axis);
  if (bytes.length !== 4 + 4 * axes + length) throw new Error(`${name}: the file is damaged`);
  return bytes.subarray(4 + 4 * axes);
}

/** Loads MNIST from `folder`: 60,000 digits to train on, and the first `heldOut` of the 10,000 others. */
export async function loadDigits(folder: string, heldOut: number, onProgress: Progress): Promise<DigitSets> {
  const names = ["train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"];
  const urls = names.map((name) => `${folder}/${name}-ubyte.gz`);
  const files = await fetchAll(urls, onProgress);
  const [images, labels, testImages, testLabels] = files.map((bytes, i) => parseIdx(bytes, urls[i]));
  return {
    train: { images, labels, count: labels.length },
    heldOut: {
      images: testImages.subarray(0, heldOut * size * size),
      labels: testLabels.subarray(0, heldOut),
      count: heldOut,
    },
  };
}
