/** nabla info: what a model is (architecture, parameters, context, tokenizer, chat template), and the memory that using and training it takes. */
import type { Command } from "commander";
import { exitCodes } from "./exit.ts";
import type { Declare, Outcome } from "./main.ts";
import { modelArgument } from "./model-argument.ts";
import { count, deviceFlag } from "./options.ts";

interface Flags {
  readonly batch: number;
  readonly length?: number;
  readonly rank: number;
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
  const length = Math.min(flags.length ?? 512, facts.context ?? 512);
  const { planMemory } = await import("./memory-plan.ts");
  const memory =
    flags.memory && facts.text
      ? await planMemory(facts, { batch: flags.batch, length, rank: flags.rank, device: flags.device })
      : null;
  if (flags.json) {
    const { config: _, ...plain } = facts;
    console.log(JSON.stringify({ ...plain, batch: flags.batch, length, rank: flags.rank, memory }));
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
  console.log(
    `\nmemory of the process, on ${memory.device}; training with batches of ${flags.batch} × ${length} tokens`,
  );
  for (const { name: each, peak, parts } of memory.rows) {
    const shown = Object.entries(parts).filter(([, bytes]) => bytes >= 0.005 * peak);
    row(
      each,
      `${formatBytes(peak).padStart(9)}   ${shown.map(([what, bytes]) => `${what} ${formatBytes(bytes)}`).join(", ")}`,
    );
  }
  return exitCodes.ok;
}
