/** nabla info: what a model is (architecture, parameters, context, tokenizer, chat template), and the memory that using and training it takes. */
import type { Command } from "commander";
import { exitCodes } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelArgument } from "./model-argument.ts";
import { count, deviceFlag, names, oneOf } from "./options.ts";

interface Flags {
  readonly batch: number;
  readonly length?: number;
  readonly rank: number;
  readonly target?: readonly string[];
  readonly quantize?: "nf4" | "int8" | "stored";
  readonly recompute?: boolean;
  readonly memory: boolean;
  readonly json?: boolean;
  readonly device?: string;
}

export const declare: Declare = (parent: Command, done) => {
  parent
    .command("info")
    .description("what a model is, and the memory that inference, LoRA, QLoRA and full training of it take")
    .argument(...modelArgument)
    .option("--batch <n>", "examples in a batch of training", count(1), 1)
    .option("--length <n>", "tokens of an example, and of a text that is continued; 512 at most by default", count(1))
    .option("--rank <n>", "rank of the adapters", count(1), 16)
    .option("--target <names>", "their layers: all-linear, or names, e.g. q_proj,v_proj; may be repeated", names)
    .option(
      "--quantize <kind>",
      "the base of QLoRA: nf4, int8, or stored, as a GGUF file has it (its default, where that is in few bits; else nf4)",
      oneOf("nf4", "int8", "stored"),
    )
    .option("--recompute", "in training blocks are computed again for the gradient, as by finetune --recompute")
    .option("--no-memory", "leave out the memory: nothing is planned")
    .option("--json", "print one line of JSON")
    .option(...deviceFlag)
    .action((model: string, flags: Flags) => done(info(model, flags)));
};

async function info(name: string, flags: Flags): Outcome {
  const { findModel } = await import("./model-argument.ts");
  const { describeModel } = await import("./model-facts.ts");
  const { formatBytes, formatCount } = await import("../train/terminal.ts");
  const place = await findModel(name);
  const facts = await describeModel(place);
  const { usualLength } = await import("./finetune-data.ts");
  const length = Math.min(flags.length ?? usualLength, facts.context ?? usualLength);
  const memory = flags.memory && facts.text ? await memoryRows(place, facts, length, flags) : null;
  if (flags.json) {
    const { config: _, tokens: __, ...plain } = facts;
    const { batch, rank, recompute = false } = flags;
    console.log(JSON.stringify({ ...plain, batch, length, rank, recompute, memory }));
    return exitCodes.ok;
  }
  const row = (label: string, text: string): void => console.log(`${label.padEnd(15)} ${text}`);
  row(
    "architecture",
    `${facts.architecture}${facts.className === null ? "" : ` (${facts.className})`}, for ${facts.task}`,
  );
  row("parameters", `${formatCount(facts.parameters)} (${facts.parameters})`);
  row(
    "stored as",
    `${facts.types.map(({ type, share }) => (facts.types.length === 1 ? type : `${type} ${Math.round(100 * share)} %`)).join(", ")}; ${formatBytes(facts.bytes)} in ${facts.files} ${facts.files === 1 ? "file" : "files"}`,
  );
  if (facts.shape !== "") row("shape", facts.shape);
  if (facts.context !== null) row("context", `${facts.context} tokens`);
  if (facts.tokenizer !== null) row("tokenizer", facts.tokenizer);
  if (facts.labels !== null)
    row(
      "classes",
      facts.labels.slice(0, 12).join(", ") + (facts.labels.length > 12 ? ` … (${facts.labels.length})` : ""),
    );
  if (facts.text)
    row("chat template", facts.chatTemplate ? "yes: nabla generate --chat, and data with messages" : "none");
  if (memory === null) return exitCodes.ok;
  const again = flags.recompute ? ", whose blocks are computed again for the gradient" : "";
  console.log(`\nmemory of the process, training with batches of ${flags.batch} × ${length} tokens${again}`);
  for (const { name: each, memory: planned } of memory) {
    const { weights, otherState, temporaries, best, process: own, total } = planned;
    const state = each === "inference" ? "keys and values" : "optimiser";
    const parts = { weights, [state]: otherState, activations: temporaries, "best weights": best, process: own };
    const shown = Object.entries(parts).filter(([, bytes]) => bytes >= 0.005 * total);
    const words = shown.map(([what, bytes]) => `${what} ${formatBytes(bytes)}`).join(", ");
    row(each, `${formatBytes(total).padStart(9)}   ${words}`);
  }
  return exitCodes.ok;
}

interface Row {
  readonly name: string;
  readonly memory: import("./model-memory.ts").ModelMemory;
}

/** What each use of the model takes, planned on the device. */
async function memoryRows(
  place: import("./model-argument.ts").ModelPlace,
  { config, types, tokens }: import("./model-facts.ts").ModelFacts,
  time: number,
  flags: Flags,
): Promise<Row[]> {
  const { openDevice } = await import("./device.ts");
  const { memoryOf } = await import("./model-memory.ts");
  const { targetOf } = await import("./finetune-method.ts");
  const { baseQuantization, storedMatricesOf } = await import("./pretrained-model.ts");
  const { batch, rank, recompute = false } = flags;
  const stored = await storedMatricesOf(place);
  const quantization = await baseQuantization(place, flags.quantize);
  const target = targetOf(flags.target ?? ["all-linear"]);
  const device = await openDevice(flags.device);
  const [{ type }] = types;
  const floating = /^bf(loat)?16$/.test(type) ? "bfloat16" : /^f(loat)?16$/.test(type) ? "float16" : "float32";
  const uses = { inference: "inference", LoRA: "lora", QLoRA: "qlora", "full training": "full" } as const;
  const rows: Row[] = [];
  for (const [name, method] of Object.entries(uses)) {
    const dtype = method === "full" ? "float32" : floating; // weights that learn are float32, as finetune makes them
    // as generate and finetune read it
    const asStored = stored.size > 0 && (method === "inference" || (method === "qlora" && quantization === "stored"));
    const base = asStored ? { stored } : method === "qlora" && quantization !== "stored" ? { quantization } : {};
    const memory = await memoryOf(config, method, {
      ...{ batch, time, rank, target, recompute, device, dtype, tokenizer: tokens },
      ...base,
    });
    rows.push({ name, memory });
  }
  return rows;
}
