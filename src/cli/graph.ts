/**
 * nabla graph: what a model's forward pass or training step is recorded as, and what becomes of it: kernels, memory, sources; as text,
 * or the recorded graph as an SVG. Nothing is computed.
 */
import type { Command } from "commander";
import { exitCodes, UsageError } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { between, count, deviceFlag, oneOf } from "./options.ts";
import type { PlannedNode, PlannedProgram } from "./planning.ts";

const stages = ["graph", "kernels", "memory", "source"] as const;

interface Flags {
  readonly pass: "forward" | "step";
  readonly stage: (typeof stages)[number];
  readonly format?: "text" | "svg";
  readonly out?: string;
  readonly layers: number;
  readonly width: number;
  readonly heads: number;
  readonly context: number;
  readonly dropout: number;
  readonly batch: number;
  readonly vocab: number;
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("graph")
    .description("the recorded graph, its kernels and its memory plan, as text or as SVG")
    .argument("<model>", "gpt, convnet, mlp, or a module file whose default export is a function that returns a tensor")
    .option("--pass <kind>", "forward, or step (forward, backward and update)", oneOf("forward", "step"), "forward")
    .option("--stage <name>", "graph, kernels, memory or source", oneOf(...stages), "graph")
    .option("--format <kind>", "text or svg (of the graph); by the ending of --out by default", oneOf("text", "svg"))
    .option("--out <file>", "write there instead of printing")
    .option("--layers <n>", "gpt: transformer blocks", count(1), 1)
    .option("--width <n>", "gpt: size of the embeddings", count(1), 64)
    .option("--heads <n>", "gpt: attention heads", count(1), 4)
    .option("--context <n>", "gpt: tokens seen at once", count(1), 64)
    .option("--dropout <p>", "gpt: share of activations dropped", between(0, 0.99), 0)
    .option("--vocab <n>", "gpt: size of the vocabulary", count(2), 65)
    .option("--batch <n>", "windows or images in a batch", count(1), 8)
    .option(...deviceFlag)
    .action((model: string, flags: Flags) => done(show(model, flags)));
};

async function show(name: string, flags: Flags): Outcome {
  const format = flags.format ?? (flags.out?.endsWith(".svg") ? "svg" : "text");
  if (format === "svg" && flags.stage !== "graph")
    throw new UsageError(`--format svg draws the graph; the stage "${flags.stage}" is text`);
  const { openDevice } = await import("./device.ts");
  const { openPlanning } = await import("./planning.ts");
  const programs = await openPlanning(await openDevice(flags.device));
  const planned = await record(name, flags, programs);
  const { drawGraph } = await import("./svg.ts");
  const text =
    format === "svg"
      ? drawGraph(
          boxesOf(planned.nodes),
          `${name}, ${flags.pass}: ${planned.nodes.length} nodes, ${planned.program.stats.kernels} kernels`,
        )
      : `${planned.program.describe(flags.stage).trimEnd()}\n`;
  if (flags.out === undefined) process.stdout.write(text);
  else {
    const { writeFileAtomic } = await import("../formats/atomic.ts");
    await writeFileAtomic(flags.out, text);
    console.log(`written to ${flags.out}`);
  }
  return exitCodes.ok;
}

/** Records what was asked for, and gives the program that it became. */
async function record(name: string, flags: Flags, programs: PlannedProgram[]): Promise<PlannedProgram> {
  const { subjects } = await import("./models.ts");
  const { noGrad, realize, Tensor } = await import("../tensor/index.ts");
  const last = (): PlannedProgram => programs.at(-1)!;
  if (subjects[name] === undefined) {
    const { resolve } = await import("node:path");
    const { existsSync } = await import("node:fs");
    const { pathToFileURL } = await import("node:url");
    const path = resolve(name);
    if (!/\.[mc]?[jt]s$/.test(name) || !existsSync(path))
      throw new UsageError(
        `there is no model "${name}"; known are ${Object.keys(subjects).join(", ")}, or name a module file`,
      );
    const made = await (await import(pathToFileURL(path).href)).default?.();
    if (!(made instanceof Tensor))
      throw new UsageError(
        `${name}: the default export must be a function that returns a tensor (of this same package)`,
      );
    await realize(made);
    return last();
  }
  const { model, optimizer, forward, loss } = subjects[name](flags);
  await realize(...model.parameters());
  if (flags.pass === "forward") {
    model.eval();
    await realize(noGrad(forward));
    return last();
  }
  for (let step = 0; step < 2; step++) {
    loss().backward();
    await optimizer.step();
    optimizer.zeroGrad();
    await realize(...model.parameters());
  }
  return programs.findLast(({ writesState, nodes }) => writesState && nodes.length > 10) ?? last();
}

const colors: Readonly<Record<PlannedNode["kind"], string>> = {
  input: "#e3eefc",
  state: "#fdebc8",
  constant: "#eef0f3",
  composite: "#e2f3e4",
  primitive: "#ffffff",
};

/** The graph without its constants, which stand in the text of what uses them elsewhere and would only crowd a drawing. */
function boxesOf(nodes: readonly PlannedNode[]) {
  const kept = nodes.map((n) => n.kind !== "constant");
  const place = new Map<number, number>();
  nodes.forEach((_, i) => {
    if (kept[i]) place.set(i, place.size);
  });
  return nodes.flatMap((n, i) =>
    kept[i]
      ? [
          {
            title: n.name,
            subtitle: n.label,
            color: n.isRoot && n.kind !== "state" ? "#f6dcdc" : colors[n.kind],
            inputs: n.inputs.flatMap((input) => place.get(input) ?? []),
          },
        ]
      : [],
  );
}
