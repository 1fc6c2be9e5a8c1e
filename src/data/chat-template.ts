/**
 * Chat templates: the Jinja text in a model's tokenizer_config.json that turns a conversation into the text it was trained on. Rendered
 * by @huggingface/jinja, which executes nothing else.
 */
import { ChatTemplateError } from "./errors.ts";
import { strftime } from "./strftime.ts";
import { marked, type Tag, tagsOf, unreadableTag } from "./template-lines.ts";

/** A turn of a conversation: "system", "user", "assistant", or another role that the model's template knows. */
export interface Message {
  readonly role: string;
  readonly content: string;
  /** In fine-tuning, 0: what the assistant says here is not learnt. */
  readonly weight?: number;
  /** What else the template reads of a turn, as `tool_calls`. */
  readonly [field: string]: unknown;
}

export interface ChatTemplateOptions {
  /** What the template calls bos_token, eos_token, and other names that it may use, as `tools`. */
  readonly bosToken?: string;
  readonly eosToken?: string;
  readonly variables?: Readonly<Record<string, unknown>>;
  /** The time that strftime_now writes. Default: when the template is rendered. */
  readonly now?: () => Date;
}

export interface RenderOptions {
  /** Up to where the assistant begins to speak. Default: false. */
  readonly addGenerationPrompt?: boolean;
  /** What errors call the conversation. */
  readonly where?: string;
  /** Names that the template may use, beside its own. */
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** A part of a rendered conversation, and whether it is what the assistant says. */
export interface ChatPart {
  readonly text: string;
  readonly learnt: boolean;
}

type Items = Readonly<Record<string, unknown>>;
type Engine = typeof import("@huggingface/jinja");

/** Characters for private use, between which stands what a template marks as the assistant's. */
const [begins, ends] = ["\ue0f0", "\ue0f1"];

/**
 * transformers' marks around what the assistant says ({% generation %}), as blocks that do nothing, or that write `begins` and `ends`: what stands around
 * them is then trimmed as around any block. The engine takes them out of the text, so that a "-}}" before one trims what stands behind it.
 */
const plainBlocks = (template: string, writes = false): string =>
  template.replace(
    /\{%(-?)\s*(end)?generation\s*(-?)%\}/g,
    (_, left: string, end: string | undefined, right: string) => {
      const inside = writes ? `{{ "${end ? ends : begins}" }}` : "";
      return `{%${left} if true %}${inside}{% endif ${right}%}`;
    },
  );

const place = ({ line, text }: Tag): string => `line ${line}, ${text.length > 60 ? `${text.slice(0, 57)}…` : text}`;

function range(start: number, stop?: number, step = 1): number[] {
  if (stop === undefined) return range(0, start);
  if (step === 0) throw new Error("range: the step must not be 0");
  return Array.from({ length: Math.max(0, Math.ceil((stop - start) / step)) }, (_, i) => start + i * step);
}

/** A chat template that has been read. `ChatTemplate.create` makes one. */
export class ChatTemplate {
  /** The template's text. */
  readonly source: string;
  readonly #engine: Engine;
  readonly #parsed: ReturnType<Engine["parse"]>;
  readonly #options: ChatTemplateOptions;
  /** The template that writes its marks; made when it is needed. */
  #marking: ChatTemplate | null = null;

  private constructor(
    source: string,
    parsed: ReturnType<Engine["parse"]>,
    engine: Engine,
    options: ChatTemplateOptions,
  ) {
    this.source = source;
    this.#parsed = parsed;
    this.#engine = engine;
    this.#options = options;
  }

  /** Throws ChatTemplateError naming the line where the template is not valid Jinja, as far as chat templates use it. */
  static async create(template: string, options: ChatTemplateOptions = {}): Promise<ChatTemplate> {
    const engine = await import("@huggingface/jinja");
    const read = (text: string) => new engine.Template(plainBlocks(text)).parsed;
    const reads = (text: string): boolean => {
      try {
        read(text);
        return true;
      } catch {
        return false;
      }
    };
    try {
      return new ChatTemplate(template, read(template), engine, options);
    } catch (error) {
      const tag = unreadableTag(template, reads);
      throw new ChatTemplateError(
        `the chat template can't be read${tag ? ` (${place(tag)})` : ""}: ${(error as Error).message}`,
        { cause: error },
      );
    }
  }

  /** The text of a conversation. Throws ChatTemplateError naming the template's line where it fails, or complains itself. */
  render(messages: readonly Message[], options: RenderOptions = {}): string {
    const { bosToken = "", eosToken = "", variables } = this.#options;
    const items: Items = {
      bos_token: bosToken,
      eos_token: eosToken,
      tools: null, // as transformers, whose templates ask for them
      documents: null,
      ...variables,
      ...options.variables,
      messages: messages.map((message) => ({ ...message })),
      add_generation_prompt: options.addGenerationPrompt ?? false,
    };
    try {
      return this.#run(this.#parsed, items);
    } catch (error) {
      const tag = this.#failingTag(items);
      throw new ChatTemplateError(
        `${options.where ?? "chat"}: the chat template fails on this conversation${tag ? ` (${place(tag)})` : ""}: ${(error as Error).message}`,
        { cause: error },
      );
    }
  }

  #run(parsed: ReturnType<Engine["parse"]>, items: Items): string {
    const { Environment, Interpreter } = this.#engine;
    const environment = new Environment();
    const globals: Items = {
      ...{ true: true, True: true, false: false, False: false, none: null, None: null },
      range,
      raise_exception: (message: unknown) => {
        throw new Error(String(message));
      },
      strftime_now: (format: string) => strftime(this.#options.now?.() ?? new Date(), format),
    };
    for (const [name, value] of Object.entries({ ...globals, ...items })) environment.set(name, value);
    return String(new Interpreter(environment).run(parsed).value);
  }

  /** The last tag that a template came to before it failed. */
  #failingTag(items: Items): Tag | undefined {
    const tags = tagsOf(this.source);
    let last: Tag | undefined;
    const nabla_at = (i: number): string => {
      last = tags[i];
      return "";
    };
    try {
      this.#run(new this.#engine.Template(plainBlocks(marked(this.source, "nabla_at"))).parsed, { ...items, nabla_at });
    } catch {}
    return last;
  }

  /**
   * A conversation in parts: what the assistant says (with what ends a turn) is to be learnt, but for turns of weight 0; the rest is not. Where the template
   * itself marks what is the assistant's ({% generation %}), that is learnt, as in TRL. `turns` "last": only the last of the assistant's turns. Throws
   * ChatTemplateError where there is none, or where the template writes earlier turns anew when later ones follow,
   * so that they can't be learnt at once.
   */
  parts(
    messages: readonly Message[],
    options: Omit<RenderOptions, "addGenerationPrompt"> & { readonly turns?: "all" | "last" } = {},
  ): ChatPart[] {
    const { turns = "all", ...rest } = options;
    const { where = "chat" } = rest;
    const spoken = messages.flatMap(({ role }, i) => (role === "assistant" ? [i] : []));
    if (spoken.length === 0)
      throw new ChatTemplateError(
        `${where}: the assistant says nothing in this conversation; there is nothing to learn`,
      );
    const last = spoken[spoken.length - 1];
    const marked = this.#markedParts(messages.slice(0, last + 1), rest);
    if (marked.length > 0) return chosen(marked, spoken, { messages, turns, where });
    const whole = this.render(messages.slice(0, last + 1), rest);
    const parts: ChatPart[] = [];
    let at = 0;
    for (const i of turns === "last" ? [last] : spoken) {
      const before = this.render(messages.slice(0, i), { ...rest, addGenerationPrompt: true });
      const after = this.render(messages.slice(0, i + 1), rest);
      if (!whole.startsWith(after) || !after.startsWith(before) || before.length < at)
        throw new ChatTemplateError(
          `${where}, message ${i + 1}: the chat template writes this turn in another way once the conversation goes on, so that it can't be learnt with it; ` +
            'learn the last turns only (turns: "last"), or cut the conversation after this turn',
        );
      parts.push({ text: whole.slice(at, before.length), learnt: false });
      parts.push({ text: whole.slice(before.length, after.length), learnt: messages[i].weight !== 0 });
      at = after.length;
    }
    return parts.filter(({ text }) => text !== "");
  }

  /** The parts as the template's own marks tell them; none where it has no marks, or makes none here. */
  #markedParts(messages: readonly Message[], options: RenderOptions): ChatPart[] {
    if (!/\{%-?\s*generation\s*-?%\}/.test(this.source)) return [];
    this.#marking ??= new ChatTemplate(
      this.source,
      new this.#engine.Template(plainBlocks(this.source, true)).parsed,
      this.#engine,
      this.#options,
    );
    const text = this.#marking.render(messages, options);
    const parts = text
      .split(new RegExp(`(${begins}[^${ends}]*${ends})`))
      .map((part) => ({ text: part.replaceAll(begins, "").replaceAll(ends, ""), learnt: part.startsWith(begins) }))
      .filter((part) => part.text !== "");
    return parts.some(({ learnt }) => learnt) ? parts : [];
  }
}

/** Marked parts of which only those are learnt that the turns and their weights say. */
function chosen(
  parts: readonly ChatPart[],
  spoken: readonly number[],
  {
    messages,
    turns,
    where,
  }: { readonly messages: readonly Message[]; readonly turns: "all" | "last"; readonly where: string },
): ChatPart[] {
  const learnt = parts.flatMap((part, i) => (part.learnt ? [i] : []));
  const left = spoken.filter((i) => messages[i].weight === 0);
  if (left.length > 0 && learnt.length !== spoken.length)
    throw new ChatTemplateError(
      `${where}, message ${left[0] + 1}: the chat template marks ${learnt.length} parts of ${spoken.length} turns, so that it is not known which of them the turn of weight 0 is`,
    );
  const isChosen = (i: number): boolean =>
    (turns === "all" || i === learnt[learnt.length - 1]) &&
    (left.length === 0 || messages[spoken[learnt.indexOf(i)]].weight !== 0);
  return parts.map(({ text, learnt: is }, i) => ({ text, learnt: is && isChosen(i) }));
}
