/**
 * Chat templates: the Jinja text in a model's tokenizer_config.json that turns a conversation into the text it was trained on. Rendered
 * by @huggingface/jinja, which executes nothing else.
 */
import { FinetuneError } from "./errors.ts";
import type { Message } from "./examples.ts";

export interface ChatTemplateOptions {
  /** What the template calls bos_token, eos_token, and other names that it may use. */
  readonly bosToken?: string;
  readonly eosToken?: string;
  readonly variables?: Readonly<Record<string, unknown>>;
}

/** A part of a rendered conversation, and whether it is what the assistant says. */
export interface ChatPart {
  readonly text: string;
  readonly learnt: boolean;
}

/** A chat template that has been read. `ChatTemplate.create` makes one. */
export class ChatTemplate {
  readonly #render: (items: Record<string, unknown>) => string;
  readonly #variables: Readonly<Record<string, unknown>>;

  private constructor(
    render: (items: Record<string, unknown>) => string,
    variables: Readonly<Record<string, unknown>>,
  ) {
    this.#render = render;
    this.#variables = variables;
  }

  /** Throws FinetuneError where the template is not valid Jinja, as far as chat templates use it. */
  static async create(template: string, options: ChatTemplateOptions = {}): Promise<ChatTemplate> {
    const { Template } = await import("@huggingface/jinja");
    const { bosToken = "", eosToken = "", variables = {} } = options;
    try {
      const parsed = new Template(template);
      return new ChatTemplate((items) => parsed.render(items), {
        bos_token: bosToken,
        eos_token: eosToken,
        ...variables,
      });
    } catch (error) {
      throw new FinetuneError(`the chat template can't be read: ${(error as Error).message}`, { cause: error });
    }
  }

  /** The text of a conversation; with `addGenerationPrompt` up to where the assistant begins to speak. Throws FinetuneError. */
  render(
    messages: readonly Message[],
    options: { readonly addGenerationPrompt?: boolean; readonly where?: string } = {},
  ): string {
    try {
      return this.#render({
        ...this.#variables,
        messages: messages.map((message) => ({ ...message })),
        add_generation_prompt: options.addGenerationPrompt ?? false,
      });
    } catch (error) {
      throw new FinetuneError(
        `${options.where ?? "chat"}: the chat template fails on this conversation: ${(error as Error).message}`,
        { cause: error },
      );
    }
  }

  /**
   * A conversation in parts: what the assistant says (with what ends a turn) is to be learnt, the rest is not. `turns` "last": only
   * the last of the assistant's turns. Throws FinetuneError where there is none, or where the template writes earlier turns anew when later ones follow,
   * so that they can't be learnt at once.
   */
  parts(
    messages: readonly Message[],
    options: { readonly turns?: "all" | "last"; readonly where?: string } = {},
  ): ChatPart[] {
    const { turns = "all", where = "chat" } = options;
    const spoken = messages.flatMap(({ role }, i) => (role === "assistant" ? [i] : []));
    if (spoken.length === 0)
      throw new FinetuneError(`${where}: the assistant says nothing in this conversation; there is nothing to learn`);
    const last = spoken[spoken.length - 1];
    const whole = this.render(messages.slice(0, last + 1), { where });
    const parts: ChatPart[] = [];
    let at = 0;
    for (const i of turns === "last" ? [last] : spoken) {
      const before = this.render(messages.slice(0, i), { addGenerationPrompt: true, where });
      const after = this.render(messages.slice(0, i + 1), { where });
      if (!whole.startsWith(after) || !after.startsWith(before) || before.length < at)
        throw new FinetuneError(
          `${where}, message ${i + 1}: the chat template writes this turn in another way once the conversation goes on, so that it can't be learnt with it; ` +
            'learn the last turns only (turns: "last"), or cut the conversation after this turn',
        );
      parts.push({ text: whole.slice(at, before.length), learnt: false });
      parts.push({ text: whole.slice(before.length, after.length), learnt: true });
      at = after.length;
    }
    return parts.filter(({ text }) => text !== "");
  }
}
