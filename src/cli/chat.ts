/** A conversation at the terminal, or along a pipe: each line is answered, by the model's own chat template. */
import { createInterface } from "node:readline";
import type { ChatTemplate } from "../data/chat-template.ts";
import type { Message, Tokenizer } from "../data/index.ts";
import { generate, type LanguageModel, type ChatOptions as Options } from "../generate/index.ts";
import { exitCodes } from "./exit.ts";
import { printable } from "./gpt-run.ts";
import type { Outcome } from "./main.ts";

export interface ChatOptions {
  readonly model: LanguageModel;
  readonly system: string | undefined;
  readonly options: Options & { readonly tokenizer: Tokenizer; readonly chatTemplate: ChatTemplate };
}

/** Speaks until the input ends. Ctrl-C ends the answer at hand, or, where there is none, the conversation. */
export async function chat({ model, system, options }: ChatOptions): Outcome {
  const atTerminal = process.stdin.isTTY === true;
  const messages: Message[] = system === undefined ? [] : [{ role: "system", content: system }];
  const lines = createInterface({
    input: process.stdin,
    output: process.stdout,
    terminal: atTerminal,
    prompt: "you  › ",
  });
  const seesAll = (): boolean => {
    const { tokenizer, chatTemplate } = options;
    const text = chatTemplate.render(messages, { addGenerationPrompt: true });
    return tokenizer.encode(text, { addSpecialTokens: false }).length <= model.contextLength;
  };
  let told = false;
  let answering = false;
  let stopped = false;
  const interrupt = (): void => {
    if (answering) stopped = true;
    else lines.close();
  };
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  if (atTerminal) console.log("An empty line or Ctrl-D ends the conversation, Ctrl-C an answer.\n");
  const ask = (): void => {
    if (atTerminal) lines.prompt();
  };
  try {
    ask();
    for await (const line of lines) {
      if (line.trim() === "") {
        if (atTerminal) break;
        continue;
      }
      messages.push({ role: "user", content: line });
      if (!told && !seesAll()) {
        told = true;
        console.error(
          `nabla: the conversation is longer than the ${model.contextLength} tokens that the model sees; its beginning is forgotten`,
        );
      }
      [answering, stopped] = [true, false];
      if (atTerminal) process.stdout.write("model › ");
      let text = "";
      for await (const piece of generate(model, messages, {
        ...options,
        seed: (options.seed ?? 0) + messages.length,
      })) {
        text += piece;
        process.stdout.write(printable(piece));
        if (stopped) break;
      }
      process.stdout.write(atTerminal ? "\n\n" : "\n");
      messages.push({ role: "assistant", content: text.trim() });
      answering = false;
      ask();
    }
    return exitCodes.ok;
  } finally {
    process.off("SIGINT", interrupt);
    lines.close();
  }
}
