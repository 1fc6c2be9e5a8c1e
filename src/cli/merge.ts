/** nabla merge: a model with an adapter's updates in its weights, as a folder that everything loads that loads the model. */
import { join } from "node:path";
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelArgument } from "./model-argument.ts";
import { deviceFlag, oneOf } from "./options.ts";

interface Flags {
  readonly adapter?: string;
  readonly out?: string;
  readonly dtype?: "f32" | "bf16" | "f16";
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("merge")
    .description("an adapter's updates into the weights of its model: a model of its own")
    .argument(...modelArgument)
    .option("--adapter <dir>", "the adapter: what finetune --out, or PEFT, has written")
    .option("--out <dir>", "a new folder for the model")
    .option("--dtype <name>", "of the weights: f32, bf16 or f16; as stored by default", oneOf("f32", "bf16", "f16"))
    .option(...deviceFlag)
    .action((model: string, flags: Flags) => done(merge(model, flags)));
};

async function merge(name: string, flags: Flags): Outcome {
  const { out, dtype } = flags;
  if (out === undefined) throw new UsageError("--out is missing: name a new folder for the model");
  const { configOf, findText, labelsOf, namesFor, openModel, taskOf } = await import("./pretrained-model.ts");
  const { expectFree, writeCompanions, writeWholeFolder, writtenConfig } = await import("./model-folder.ts");
  const { openDevice } = await import("./device.ts");
  const { adapterOf } = await import("../finetune/index.ts");
  const { save } = await import("../formats/index.ts");
  const { formatCount } = await import("../train/terminal.ts");
  const { place, adapter } = await findText(name, flags.adapter);
  if (adapter === undefined) throw new UsageError("--adapter is missing: name the adapter's folder");
  expectFree(out);
  await openDevice(flags.device);
  const config = await configOf(place);
  const task = adapter.taskType === "SEQ_CLS" ? "classification" : taskOf(config, place.name);
  const model = await openModel(place, { task, adapter, tokenizer: null, ...(dtype === undefined ? {} : { dtype }) });
  const merged = adapterOf(model)!.mergedStateDict();
  const { numLabels } = model as { readonly numLabels?: number };
  const regression = numLabels === 1;
  const labels = numLabels === undefined ? null : (adapter.labels ?? namesFor(numLabels, labelsOf(config)));
  const largest = Object.values(merged).reduce((a, b) => (b.size > a.size ? b : a));
  await writeWholeFolder(out, async (folder) => {
    await save(merged, join(folder, "model.safetensors"));
    await writeCompanions(folder, place, writtenConfig(config, { task, dtype: largest.dtype, labels, regression }));
  });
  const size = Object.values(merged).reduce((n, { size }) => n + size, 0);
  console.log(
    `${place.name} with ${adapter.folder}: ${formatCount(size)} parameters, ${largest.dtype}; the model is in ${out}`,
  );
  return exitCodes.ok;
}
