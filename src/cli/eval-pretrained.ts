/**
 * eval of a pretrained model, with an adapter or without: how it does on each example, and the metrics that this suffices for. What kinds of
 * metrics there are is the library's table (finetune/metrics.ts); which of them need more than the model's likelihoods is the table here.
 */
import {
  type ChoiceExample,
  type Columns,
  exactMatch,
  examplesPrint,
  languageTask,
  measure,
  metrics,
  metricsOf,
  multipleChoice,
  readChoices,
  textTask,
  writeEvaluation,
} from "../finetune/index.ts";
import { countedRows } from "../finetune/metrics.ts";
import { leftOut } from "../finetune/report.ts";
import { formatCount } from "../train/terminal.ts";
import { openDevice } from "./device.ts";
import type { EvalFlags } from "./eval.ts";
import { exitCodes, UsageError } from "./exit.ts";
import { lengthOfRows, readLanguage, readTargets } from "./finetune-data.ts";
import type { Outcome } from "./main.ts";
import type { ModelPlace } from "./model-argument.ts";
import { expectFree, writeWholeFolder } from "./model-folder.ts";
import { type ModelTokenizer, openTokenizer } from "./model-tokenizer.ts";
import {
  type AdapterPlace,
  configOf,
  expectWriter,
  findText,
  labelsOf,
  namesFor,
  openModel,
  taskOf,
} from "./pretrained-model.ts";

type Flags = EvalFlags & { readonly data: readonly string[] };

interface Opened {
  readonly place: ModelPlace;
  readonly adapter: AdapterPlace | undefined;
  readonly tokenizer: ModelTokenizer;
}

/** Of this dtype; where none is asked for, as they are stored, be it in the blocks of a GGUF file. */
const weightsOf = (dtype: Flags["dtype"]) => (dtype === undefined ? ({ quantize: "stored" } as const) : { dtype });

/** What has been measured of each example, and a print of the examples. */
interface Measured {
  readonly columns: Columns;
  readonly print: string;
  /** Examples that were cut, and the tokens that are seen of one. */
  readonly cut?: { readonly examples: number; readonly maxLength: number };
}

export async function evaluatePretrained(name: string, flags: Flags): Outcome {
  const wanted = metricNames(flags.metrics);
  if (flags.out !== undefined) expectFree(flags.out);
  const { place, adapter } = await findText(name, flags.adapter);
  const config = await configOf(place);
  const classifies = adapter ? adapter.taskType === "SEQ_CLS" : taskOf(config, place.name) === "classification";
  if (!classifies)
    expectWriter(config, place.name, "a classifier of it can be measured: what finetune --task classify leaves");
  const opened = { place, adapter, tokenizer: await openTokenizer(place) };
  const device = await openDevice(flags.device);
  const chooses = wanted?.some((each) => each.startsWith("multiple choice")) ?? false;
  const { columns, print, cut }: Measured = classifies
    ? await measureClasses(opened, flags, labelsOf(config))
    : chooses
      ? { columns: await measureChoices(opened, flags), print: "" }
      : await measureLanguage(opened, flags, wanted);
  const numbers = metricsOf(columns);
  const missing = (wanted ?? []).filter((each) => !(each in numbers));
  if (missing.length > 0)
    throw new UsageError(
      `--metrics: ${missing.join(", ")} can't be measured here; of this model and these data there are ${Object.keys(numbers).join(", ")}`,
    );
  const shown = Object.fromEntries(Object.entries(numbers).filter(([key]) => wanted === null || wanted.includes(key)));
  const examples = countedRows(columns).length;
  if (flags.out !== undefined)
    await writeWholeFolder(flags.out, (folder) =>
      writeEvaluation(folder, { before: null, after: columns, print: print === "" ? null : print }),
    );
  if (flags.json) {
    const outcome = { model: place.path, adapter: adapter?.folder ?? null, data: flags.data };
    console.log(JSON.stringify({ ...outcome, ...shown, examples }));
    return exitCodes.ok;
  }
  const what = adapter === undefined ? place.name : `${place.name} with ${adapter.folder}`;
  console.log(`${what}, on ${device}: ${formatCount(examples)} examples${leftOut(columns)}`);
  if (cut && cut.examples > 0) console.log(`longer than ${cut.maxLength} tokens and cut off: ${cut.examples}`);
  console.log();
  const width = Math.max(...Object.keys(shown).map((each) => each.length));
  for (const { name: each, write } of metrics)
    if (each in shown) console.log(`${each.padEnd(width)}  ${write(shown[each])}`);
  if (flags.out !== undefined) console.log(`\nkept in ${flags.out}, for nabla eval --compare`);
  return exitCodes.ok;
}

/** Other names of metrics. */
const short: Readonly<Record<string, string>> = { f1: "macro f1", r2: "r²" };

/** The names of --metrics as the table has them; "exact-match" is "exact match". Null where none are asked for. */
function metricNames(given: readonly string[] | undefined): readonly string[] | null {
  if (given === undefined) return null;
  const plain = (name: string): string =>
    name
      .trim()
      .toLowerCase()
      .replaceAll(/[\s_-]+/g, " ");
  return given.map((name) => {
    const asked = short[plain(name)] ?? plain(name);
    const found = metrics.find((metric) => plain(metric.name) === asked);
    if (found === undefined)
      throw new UsageError(
        `--metrics: there is no "${name}"; known are ${metrics.map((metric) => metric.name.replaceAll(" ", "-")).join(", ")}`,
      );
    return found.name;
  });
}

async function measureClasses(
  { place, adapter, tokenizer }: Opened,
  { data, text, label, batch, maxLength, dtype }: Flags,
  ofConfig: readonly string[] | null,
): Promise<Measured> {
  const model = await openModel(place, {
    task: "classification",
    tokenizer: tokenizer.tokenizer,
    ...(adapter === undefined ? {} : { adapter }),
    ...weightsOf(dtype),
  });
  const regress = model.numLabels === 1;
  const labels = adapter?.labels ?? (regress ? null : namesFor(model.numLabels, ofConfig));
  const read = await readTargets(data, tokenizer, { text, label, regress, labels });
  const longest = lengthOfRows(model, maxLength);
  const task = textTask({ maxLength: longest });
  const measurement = await measure(model as never, task as never, read.examples as never, {
    ...(batch === undefined ? {} : { batch }),
  });
  return {
    columns: measurement.examples,
    print: examplesPrint(read.examples.map(task.identity)),
    cut: { examples: task.truncated?.(model as never, read.examples) ?? 0, maxLength: longest },
  };
}

async function measureLanguage(
  { place, adapter, tokenizer }: Opened,
  { data, text, turns, batch, maxLength: asked, dtype }: Flags,
  wanted: readonly string[] | null,
): Promise<Measured> {
  const model = await openModel(place, {
    task: "generation",
    tokenizer: tokenizer.tokenizer,
    ...(adapter === undefined ? {} : { adapter }),
    ...weightsOf(dtype),
  });
  const maxLength = lengthOfRows(model, asked);
  const task = languageTask({ maxLength });
  const read = await readLanguage(data, tokenizer, { text, turns, maxLength });
  const writes = wanted?.some((name) => written.includes(name)) ?? false;
  const bare = writes ? read.textual.find((example) => !("prompt" in example)) : undefined;
  if (bare !== undefined)
    throw new UsageError(`--metrics exact-match needs examples of prompt and completion; ${bare.where} is none`);
  const measurement = await measure(model, task as never, read.tokens as never, {
    ...(batch === undefined ? {} : { batch }),
  });
  const print = examplesPrint(read.tokens.map(task.identity));
  const cut = { examples: task.truncated?.(model, read.tokens) ?? 0, maxLength };
  if (!writes) return { columns: measurement.examples, print, cut };
  const { columns } = await exactMatch(model, read.textual, {
    tokenizer: {
      encode: (text, options) => tokenizer.tokenizer.encode(text, options),
      decode: (ids) => tokenizer.decode(ids),
    },
    ...(tokenizer.bosId === undefined ? {} : { bosId: tokenizer.bosId }),
    stopTokens: tokenizer.endIds,
  });
  return { columns: { ...measurement.examples, ...columns }, print, cut };
}

/** Metrics for which the model has to write: asked for by name, because it takes long. */
const written: readonly string[] = ["exact match"];

/** Which of several answers the model finds likeliest, by files of { prompt, choices, answer }. */
async function measureChoices({ place, adapter, tokenizer }: Opened, { data, batch, dtype }: Flags): Promise<Columns> {
  const model = await openModel(place, {
    task: "generation",
    tokenizer: tokenizer.tokenizer,
    ...(adapter === undefined ? {} : { adapter }),
    ...weightsOf(dtype),
  });
  const examples: ChoiceExample[] = [];
  for (const path of data) examples.push(...(await readChoices(path)));
  return multipleChoice(model, examples, {
    tokenizer: tokenizer.tokenizer,
    ...(tokenizer.bosId === undefined ? {} : { bosId: tokenizer.bosId }),
    ...(batch === undefined ? {} : { batch }),
  });
}
