/** nabla plan: what a training would take (parameters, arithmetic and memory a step) before it is run. Nothing is computed. */
import type { Command } from "commander";
import { exitCodes } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { count, deviceFlag } from "./options.ts";
import { gptModelOptions } from "./train.ts";

interface Flags {
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly dropout: number;
  readonly batch: number;
  readonly vocab: number;
  readonly device?: string;
  readonly json?: boolean;
}

export const declare: Declare = (parent: Command, done) => {
  const plan = parent.command("plan").description("what a training would take, before it is run");
  const train = plan.command("train").description("of a training");
  const common = (command: Command): Command =>
    command.option(...deviceFlag).option("--json", "print one line of JSON");
  const gpt = gptModelOptions(train.command("gpt").description("of train gpt with these flags")).option(
    "--vocab <n>",
    "size of the vocabulary",
    count(2),
    65,
  );
  common(gpt).action((flags: Flags) => done(planTraining("gpt", flags)));
  const classifier = train
    .command("classifier")
    .description("of train classifier, for 28×28 images of 10 classes")
    .option("--model <kind>", "convnet or mlp", "convnet")
    .option("--batch <n>", "images in a batch", count(1), 64);
  common(classifier).action((flags: Flags & { model: string }) => done(planTraining(flags.model, flags)));
};

async function planTraining(name: string, flags: Flags): Outcome {
  const { openDevice } = await import("./device.ts");
  const { openPlanning } = await import("./planning.ts");
  const { footprint, plannedSteps, totalOf } = await import("./footprint.ts");
  const { subjects } = await import("./models.ts");
  const { clipGradNorm_ } = await import("../optim/index.ts");
  const { dtypes } = await import("../core/dtype.ts");
  const { formatBytes, formatCount } = await import("../train/terminal.ts");
  const { UsageError } = await import("./exit.ts");
  if (subjects[name] === undefined)
    throw new UsageError(`there is no model "${name}"; known are ${Object.keys(subjects).join(", ")}`);
  const device = await openDevice(flags.device);
  const programs = await openPlanning(device);
  const { model, optimizer, loss } = subjects[name](flags);
  // The first step makes the optimiser's state, the second is what all others are.
  for (let step = 0; step < 2; step++) {
    const value = loss();
    value.backward();
    if (name === "gpt") clipGradNorm_(model.parameters(), 1);
    await optimizer.step();
    optimizer.zeroGrad();
    await value.item();
  }
  const steps = programs.filter(({ writesState, nodes }) => writesState && nodes.length > 10);
  const last = steps.at(-1)!;
  const { flops, bytes, kernels, arenaBytes } = last.program.stats;
  const weights = model.parameters().reduce((n, p) => n + p.size * dtypes[p.dtype].bytes, 0);
  const parts = footprint(last, weights, device);
  const numbers = {
    parameters: model.parameterCount(),
    flopsPerStep: flops,
    bytesPerStep: bytes,
    kernels,
    weightBytes: weights,
    stateBytes: last.stateBytes,
    temporaryBytes: arenaBytes,
    peakBytes: totalOf(parts),
    peak: parts,
  };
  if (flags.json) {
    console.log(JSON.stringify({ model: name, device, ...numbers }));
    return exitCodes.ok;
  }
  const lines: [string, string][] = [
    ["parameters", formatCount(numbers.parameters)],
    ["a step", `${formatCount(flops)}FLOP, ${formatBytes(bytes)} moved, ${kernels} kernels on ${device}`],
    ["weights", formatBytes(weights)],
    ["optimiser", `${formatBytes(parts.otherState)} (moments, and other state)`],
    ["temporaries", `${formatBytes(arenaBytes)} (activations, and gradients, which the update reads as they are made)`],
    [
      "data",
      `${formatBytes(parts.data)} (batches of ${formatBytes(last.inputBytes)}, on host and device, until collected)`,
    ],
    ["scratch", `${formatBytes(parts.scratch)} (of the kernels, all threads together)`],
    ["process", parts.process > 0 ? `${formatBytes(parts.process)} (heap, compiled code, libraries)` : "not known"],
    ["peak", `${formatBytes(totalOf(parts))} more than after the imports, in ${plannedSteps} steps`],
  ];
  for (const [label, text] of lines) console.log(`${label.padEnd(12)} ${text}`);
  return exitCodes.ok;
}
