/**
 * The real pictures and recordings of NABLA_TEST_DATA as the tests of small models read them. tests/parity/real-inputs.ts writes
 * the same for PyTorch and onnxruntime, so that both sides compute on one and the same input.
 */
import { createHash } from "node:crypto";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { imageFolder, readWav, resample } from "../../src/data/index.ts";

const root = fileURLToPath(new URL("../..", import.meta.url));
export const dataFolder = process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data");
/** A reason to skip, where folders of the test data are absent. */
export const lacks = (...names: readonly string[]): string | false => {
  const absent = names.filter((name) => !existsSync(join(dataFolder, name)));
  return absent.length > 0 && `no test data here (NABLA_TEST_DATA): ${absent.join(", ")}`;
};

export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
export const bytesOf = (x: ArrayBufferView): Uint8Array => new Uint8Array(x.buffer, x.byteOffset, x.byteLength);

/** All 1,000 pictures, uint8 [1000, 3, 32, 32], and their labels. */
export async function cifarPictures(): Promise<{ pixels: Uint8Array; labels: Int32Array; classes: readonly string[] }> {
  const folder = await imageFolder(join(dataFolder, "cifar10-test-jpeg", "test"));
  const pixels = new Uint8Array(folder.length * 3 * 32 * 32);
  for (let i = 0; i < folder.length; i++) pixels.set((await folder.get(i))[0].data, i * 3 * 32 * 32);
  return { pixels, labels: Int32Array.from(folder.samples, ({ label }) => label), classes: folder.classes };
}

const spoken = ["0_george_0", "7_jackson_3", "3_lucas_5", "9_nicolas_8", "1_theo_2", "5_yweweler_4"];

/** Six digits said by six people, with half a second of silence around each: 16,000 samples a second, made of 8,000. */
export async function spokenDigits(): Promise<Float32Array> {
  const gap = new Float32Array(8000);
  const parts: Float32Array[] = [gap];
  for (const name of spoken) {
    const { channels, sampleRate } = await readWav(join(dataFolder, "spoken-digits", "recordings", `${name}.wav`));
    parts.push(resample(channels[0], sampleRate, 16000), gap);
  }
  const all = new Float32Array(parts.reduce((n, part) => n + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

/** Ten seconds of another recording, stored at 44,100 samples a second, at 16,000. */
export async function crepeRecording(): Promise<Float32Array> {
  const { channels, sampleRate } = await readWav(join(dataFolder, "torchcrepe-tiny", "test.wav"));
  return resample(channels[0], sampleRate, 16000);
}
