/**
 * PEFT's adapter_config.json (https://github.com/huggingface/peft): to and from the options of applyLora. What an option here does not
 * cover is refused by name, because an adapter that is half understood computes something else.
 */
import { FinetuneError } from "./errors.ts";
import type { LayerChoice } from "./targets.ts";

/** Which biases of the base model are learnt too: none, all, or those of the wrapped layers. */
export type LoraBias = "none" | "all" | "lora_only";

/** What an adapter is, after the target has been resolved. */
export interface AdapterConfig {
  readonly r: number;
  readonly alpha: number;
  readonly dropout: number;
  readonly rslora: boolean;
  readonly bias: LoraBias;
  /** Ranks and alphas of layers that have their own, by patterns of their paths' ends. */
  readonly rankPattern: Readonly<Record<string, number>>;
  readonly alphaPattern: Readonly<Record<string, number>>;
  /** Which layers of those named are meant; null: all. */
  readonly layers: LayerChoice | null;
  /** Names of modules, or a pattern that their whole path matches. */
  readonly targetModules: string | readonly string[];
  readonly excludeModules: string | readonly string[] | null;
  readonly modulesToSave: readonly string[];
  /** "CAUSAL_LM", "SEQ_CLS", …, or null. */
  readonly taskType: string | null;
  readonly baseModel: string | null;
}

/** The file's text. `transposed`: whether a wrapped layer keeps its weight as [in, out]. */
export function formatAdapterConfig(config: AdapterConfig, transposed: boolean): string {
  const json = {
    alpha_pattern: config.alphaPattern,
    auto_mapping: null,
    base_model_name_or_path: config.baseModel,
    bias: config.bias,
    exclude_modules: config.excludeModules,
    fan_in_fan_out: transposed,
    inference_mode: true,
    init_lora_weights: true,
    layers_pattern: null,
    layers_to_transform: null,
    lora_alpha: config.alpha,
    lora_bias: false,
    lora_dropout: config.dropout,
    modules_to_save: config.modulesToSave.length > 0 ? config.modulesToSave : null,
    peft_type: "LORA",
    r: config.r,
    rank_pattern: config.rankPattern,
    revision: null,
    target_modules: config.targetModules,
    task_type: config.taskType,
    use_dora: false,
    use_rslora: config.rslora,
  };
  return `${JSON.stringify(json, null, 2)}\n`;
}

/** What changes the computation and is not here. */
const unsupported = [
  "alora_invocation_tokens",
  "arrow_config",
  "kasa_config",
  "layer_replication",
  "lora_bias",
  "monteclora_config",
  "target_parameters",
  "trainable_token_indices",
  "use_bdlora",
  "use_dora",
  "use_qalora",
  "velora_config",
];

/** Ways to begin (init_lora_weights) that change the model's own weights, which PEFT does again whenever it loads the adapter. */
const changesBase = /^(pissa|corda|olora|loftq)/i;

const isUnset = (x: unknown): boolean =>
  x === undefined || x === null || x === false || (typeof x === "object" && Object.keys(x as object).length === 0);

const isNames = (x: unknown): x is string[] => Array.isArray(x) && x.every((name) => typeof name === "string");

/** A field of numbers by patterns; `bad` throws. */
function patternsOf(given: unknown, isRight: (x: number) => boolean, bad: () => never): Record<string, number> {
  const numbers = given ?? {};
  if (typeof numbers !== "object" || Array.isArray(numbers)) return bad();
  for (const [pattern, value] of Object.entries(numbers)) {
    try {
      new RegExp(pattern);
    } catch {
      return bad();
    }
    if (typeof value !== "number" || !isRight(value)) return bad();
  }
  return numbers as Record<string, number>;
}

/** layers_to_transform with layers_pattern. */
function layersOf(json: Record<string, unknown>, bad: (field: string, expected: string) => never): LayerChoice | null {
  const numbers = [json["layers_to_transform"] ?? []].flat();
  const patterns = [json["layers_pattern"] ?? []].flat().filter((pattern) => pattern !== "");
  if (!numbers.every((n) => Number.isInteger(n))) bad("layers_to_transform", "a layer's number or a list of them");
  if (!isNames(patterns)) bad("layers_pattern", "a name or a list of names");
  return numbers.length === 0 ? null : { numbers: numbers as number[], patterns: patterns as string[] };
}

/** Reads the file's text; `file` is what messages call it. Throws FinetuneError naming the field. */
export function parseAdapterConfig(text: string, file: string): AdapterConfig {
  let json: Record<string, unknown>;
  try {
    json = JSON.parse(text);
  } catch (error) {
    throw new FinetuneError(`${file}: not valid JSON (${(error as Error).message}); the file is damaged`);
  }
  if (typeof json !== "object" || json === null || Array.isArray(json))
    throw new FinetuneError(`${file}: expected an object of options, as PEFT writes it`);
  const bad = (field: string, expected: string): never => {
    throw new FinetuneError(`${file}: "${field}" must be ${expected}, got ${JSON.stringify(json[field])}`);
  };
  if (json["peft_type"] !== "LORA") bad("peft_type", '"LORA"; other adapters are not supported');
  for (const field of unsupported)
    if (!isUnset(json[field]))
      throw new FinetuneError(
        `${file}: "${field}" is ${JSON.stringify(json[field])}, which is not supported; merge the adapter into its model with PEFT and use that`,
      );
  const begun = json["init_lora_weights"];
  if (typeof begun === "string" && changesBase.test(begun))
    throw new FinetuneError(
      `${file}: "init_lora_weights" is ${JSON.stringify(begun)}, which changes the model's own weights too; ` +
        "let PEFT make a plain adapter of it (save_pretrained with path_initial_model_for_weight_conversion), or merge it into its model with PEFT and use that",
    );
  const { r, lora_alpha: alpha, lora_dropout: dropout = 0, bias = "none", target_modules: targets } = json;
  if (!Number.isInteger(r) || (r as number) < 1) bad("r", "a whole number ≥ 1");
  if (typeof alpha !== "number" || !(alpha > 0)) bad("lora_alpha", "a number above 0");
  if (typeof dropout !== "number" || !(dropout >= 0 && dropout < 1)) bad("lora_dropout", "a number of 0 … 1");
  if (bias !== "none" && bias !== "all" && bias !== "lora_only") bad("bias", '"none", "all" or "lora_only"');
  if (typeof targets !== "string" && !isNames(targets)) bad("target_modules", "a pattern or a list of names");
  const exclude = json["exclude_modules"] ?? null;
  if (exclude !== null && typeof exclude !== "string" && !isNames(exclude))
    bad("exclude_modules", "a pattern or a list of names");
  const saved = json["modules_to_save"] ?? [];
  if (!isNames(saved)) bad("modules_to_save", "a list of names");
  const task = json["task_type"] ?? null;
  const base = json["base_model_name_or_path"] ?? null;
  return {
    r: r as number,
    alpha: alpha as number,
    dropout: dropout as number,
    rslora: json["use_rslora"] === true,
    bias: bias as LoraBias,
    rankPattern: patternsOf(
      json["rank_pattern"],
      (x) => Number.isInteger(x) && x >= 1,
      () => bad("rank_pattern", "ranks by patterns"),
    ),
    alphaPattern: patternsOf(
      json["alpha_pattern"],
      (x) => x > 0,
      () => bad("alpha_pattern", "numbers above 0 by patterns"),
    ),
    layers: layersOf(json, bad),
    targetModules: targets as string | string[],
    excludeModules: exclude as string | string[] | null,
    modulesToSave: saved as string[],
    taskType: typeof task === "string" ? task : null,
    baseModel: typeof base === "string" ? base : null,
  };
}
