/** convert, at work. Nothing is computed but the rounding: tensors are read one after the other, and written under the names of the format. */
import { statSync } from "node:fs";
import { basename, dirname, join, resolve } from "node:path";
import { isFloat } from "../core/dtype.ts";
import { TokenizerError } from "../data/errors.ts";
import { tokenizerFromJSON } from "../data/tokenizer.ts";
import { ensureFolder } from "../formats/atomic.ts";
import { type GgufTensorInput, type GgufType, type GgufValue, readGguf, save, writeGguf } from "../formats/index.ts";
import {
  ggufModelOf,
  ggufTokenizerMetadata,
  ggufTypeFor,
  readCheckpoint,
  readConfig,
  readGgufModel,
  readGgufText,
  readWholeConfig,
  type TokenizerFiles,
} from "../models/index.ts";
import type { StateDict } from "../nn/index.ts";
import { noGrad } from "../tensor/index.ts";
import { formatBytes } from "../train/terminal.ts";
import type { StoredAs } from "./convert.ts";
import type { ModelPlace } from "./model-argument.ts";
import { writeCompanions, writeWholeFolder, writtenConfig } from "./model-folder.ts";
import { tokenizerFiles } from "./model-tokenizer.ts";
import { taskOf, weightDTypes } from "./pretrained-model.ts";

/** Writes a folder in Hugging Face's layout, and says what became of what. */
export async function toSafetensors(
  place: ModelPlace,
  out: string,
  dtype: "f32" | "bf16" | "f16" | undefined,
): Promise<string[]> {
  const { config, tensors } =
    place.kind === "gguf"
      ? await readGgufModel(place.path, { device: "reference" })
      : {
          config: (await readWholeConfig(place.path)).raw,
          tensors: await readCheckpoint(place.path, { device: "reference" }),
        };
  const wanted = dtype === undefined ? undefined : weightDTypes[dtype];
  const cast = noGrad(() => casted(tensors, wanted));
  const floats = Object.values(cast).filter((x) => isFloat(x.dtype));
  const largest = floats.reduce((a, b) => (b.size > a.size ? b : a));
  await writeWholeFolder(out, async (folder) => {
    await save(cast, join(folder, "model.safetensors"));
    // what is not changed is not touched, so that a configuration keeps what this version does not know
    const written =
      place.kind === "gguf"
        ? writtenConfig(config, { task: taskOf(config, place.name), dtype: largest.dtype })
        : { ...config, dtype: largest.dtype };
    await writeCompanions(folder, place, written);
  });
  const size = statSync(join(out, "model.safetensors")).size;
  return [`${Object.keys(cast).length} tensors, ${largest.dtype}, ${formatBytes(size)}; the model is in ${out}`];
}

/** Tensors in another floating dtype; one that stands under several names stays one. */
function casted(tensors: Readonly<StateDict>, dtype: "float32" | "bfloat16" | "float16" | undefined): StateDict {
  if (dtype === undefined) return tensors;
  const made = new Map<StateDict[string], StateDict[string]>();
  return Object.fromEntries(
    Object.entries(tensors).map(([name, x]) => {
      const y = made.get(x) ?? (isFloat(x.dtype) ? x.to(dtype) : x);
      made.set(x, y);
      return [name, y];
    }),
  );
}

/** Writes a GGUF file, and says what became of what. */
export async function toGguf(place: ModelPlace, out: string, dtype: StoredAs | undefined): Promise<string[]> {
  const { metadata, tensors } = place.kind === "gguf" ? await requantised(place, dtype) : await exported(place, dtype);
  await ensureFolder(dirname(resolve(out)));
  await writeGguf(out, { metadata, tensors });
  const counts = new Map<string, number>();
  for (const { type } of tensors.values()) counts.set(type, (counts.get(type) ?? 0) + 1);
  const types = [...counts].map(([type, count]) => `${count} ${type}`).join(", ");
  const lines = [`${tensors.size} tensors (${types}), ${formatBytes(statSync(out).size)}; the model is in ${out}`];
  const kept = [...tensors].filter(([, { type, shape }]) => shape.length > 1 && dtype !== undefined && type !== dtype);
  if (kept.length > 0)
    lines.push(
      `f16 instead of ${dtype}, because their rows do not fill blocks of 32: ${kept.length} tensors, ${kept[0][0]} the first`,
    );
  return lines;
}

interface GgufContent {
  readonly metadata: Map<string, GgufValue>;
  readonly tensors: Map<string, GgufTensorInput>;
}

/** A GGUF file again: metadata as they are, matrices in another type; what keeps its type keeps its bytes. */
async function requantised(place: ModelPlace, dtype: StoredAs | undefined): Promise<GgufContent> {
  const file = await readGguf(place.path);
  const tensors = new Map<string, GgufTensorInput>();
  for (const [name, tensor] of file.tensors) {
    const { shape } = tensor;
    const type = dtype === undefined ? tensor.type : ggufTypeFor(shape, dtype);
    const data = type === tensor.type ? await tensor.read() : await tensor.float32();
    tensors.set(name, { type, shape, data });
  }
  const metadata = new Map(file.metadata);
  if (dtype !== undefined) metadata.set("general.file_type", { type: "uint32", value: fileTypes[dtype] });
  return { metadata, tensors };
}

/** llama.cpp's numbers of what most tensors of a file are. */
const fileTypes: Readonly<Record<StoredAs, number>> = { f32: 0, f16: 1, q4_0: 2, q8_0: 7, bf16: 32 };

/** Letters, digits, contractions, spaces, line ends, other scripts, signs: what tokenizers treat in their own ways. */
const probe = "Hello  world, it's 12345 o'clock;\n\n\tdéjà vu — 日本語 привет, ½ 🙂 def f(x): return x**2  \r\nTHE END";

/** Throws TokenizerError where what is read from the metadata does not cut a text as the model's own tokenizer does. */
function checkTokenizer(files: TokenizerFiles, metadata: ReadonlyMap<string, GgufValue>): void {
  const own = tokenizerFromJSON({ ...files.tokenizer, padding: null, truncation: null }, files.source);
  const { tokenizer: back } = readGgufText({ version: 3, alignment: 32, metadata, tensors: new Map() }, files.source);
  const [a, b] = [own, back].map((each) => each.encode(probe, { addSpecialTokens: false }).join(" "));
  if (a !== b)
    throw new TokenizerError(
      `${files.source}: as a GGUF file can say it, this tokenizer cuts texts otherwise; keep to --to safetensors`,
    );
}

/** A folder's model and tokenizer as a GGUF file. */
async function exported(place: ModelPlace, dtype: StoredAs | undefined): Promise<GgufContent> {
  const config = await readConfig(place.path);
  const files = await tokenizerFiles(place);
  const tokenizer = ggufTokenizerMetadata(files);
  checkTokenizer(files, tokenizer);
  const stored = await readCheckpoint(place.path, { device: "reference" });
  const largest = Object.values(stored).reduce((a, b) => (b.size > a.size ? b : a));
  const own = ({ float32: "f32", bfloat16: "bf16", float16: "f16" } as Record<string, StoredAs>)[largest.dtype];
  const type: GgufType = dtype ?? own ?? "f32";
  const { metadata, tensors } = await noGrad(() =>
    ggufModelOf(config, stored, { type, name: basename(resolve(place.path)) }),
  );
  metadata.set("general.file_type", { type: "uint32", value: fileTypes[type as StoredAs] });
  for (const [key, value] of tokenizer) metadata.set(key, value);
  return { metadata, tensors };
}
