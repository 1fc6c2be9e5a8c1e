/**
 * Conversations as files have them, as messages of { role, content }: "messages" (OpenAI, TRL), "conversations" of { from, value } (ShareGPT), and
 * "instruction", "input", "output" (Alpaca: Taori et al. 2023), with the fields beside them that LLaMA-Factory names.
 */
import type { Message } from "../data/chat-template.ts";
import { FinetuneError } from "./errors.ts";
import { show, stringField } from "./fields.ts";

type Fields = Readonly<Record<string, unknown>>;

/** What the roles of { from, value } are called in templates. */
const roles: Readonly<Record<string, string>> = {
  human: "user",
  gpt: "assistant",
  observation: "tool",
  function_call: "assistant",
};

/** Fields of which each makes a conversation, and those that may stand beside them. */
export const conversations = ["messages", "conversations", "instruction"];
export const besides = ["input", "output", "system", "history", "tools"];

/** A list that may be written as JSON inside of a text, as tables have it; undefined where there is none. */
function listField(value: Fields, field: string, where: string): readonly unknown[] | undefined {
  let found = value[field];
  if (found === undefined || found === null || found === "") return undefined;
  if (typeof found === "string")
    try {
      found = JSON.parse(found);
    } catch {}
  if (!Array.isArray(found)) throw new FinetuneError(`${where}: "${field}" must be a list, got ${show(found)}`);
  return found.length === 0 ? undefined : found;
}

/** One message; what stands in it beside role and content is for the template. */
function messageOf(message: unknown, place: string): Message {
  if (typeof message !== "object" || message === null)
    throw new FinetuneError(`${place}: expected { role, content }, got ${show(message)}`);
  const fields = message as Fields;
  if ("from" in fields && !("role" in fields)) return spokenBy(fields, place);
  const role = stringField(fields, "role", place);
  // a turn that only calls a tool says nothing
  const silent = (fields["content"] ?? null) === null && listField(fields, "tool_calls", place) !== undefined;
  const weight = fields["weight"] ?? 1;
  if (weight !== 0 && weight !== 1)
    throw new FinetuneError(`${place}: "weight" must be 0 (not learnt) or 1 (learnt), got ${show(weight)}`);
  return { ...fields, role, content: silent ? "" : stringField(fields, "content", place) };
}

function spokenBy(fields: Fields, place: string): Message {
  const from = stringField(fields, "from", place);
  const content = stringField(fields, "value", place);
  const role = roles[from] ?? from;
  if (from !== "function_call") return { role, content };
  try {
    const calls = [JSON.parse(content)].flat() as unknown[];
    return { role, content: "", tool_calls: calls.map((each) => ({ type: "function", function: each })) };
  } catch {
    throw new FinetuneError(`${place}: "value" of a function_call must be JSON, got ${show(content)}`);
  }
}

function listedMessages(value: Fields, field: string, where: string): Message[] {
  const found = listField(value, field, where);
  if (found === undefined)
    throw new FinetuneError(`${where}: "${field}" must be a list of { role, content }, got ${show(value[field])}`);
  return found.map((message, i) => messageOf(message, `${where}, message ${i + 1}`));
}

/** Turns of an instruction: those before it, itself with its input, and the output that is to be learnt. */
function instructed(value: Fields, where: string): Message[] {
  const turn = (asked: string, answer: string): Message[] => [
    { role: "user", content: asked },
    { role: "assistant", content: answer },
  ];
  const [instruction, output] = ["instruction", "output"].map((field) => stringField(value, field, where));
  if (output === "") throw new FinetuneError(`${where}: "output" is empty; there is nothing to learn in it`);
  const input = value["input"] === undefined || value["input"] === null ? "" : stringField(value, "input", where);
  const before = (listField(value, "history", where) ?? []).map((pair) => {
    if (!Array.isArray(pair) || pair.length !== 2 || !pair.every((text) => typeof text === "string"))
      throw new FinetuneError(`${where}: "history" must be a list of [instruction, output], got ${show(pair)}`);
    return turn(pair[0], pair[1]);
  });
  return [...before.flat(), ...turn(input === "" ? instruction : `${instruction}\n${input}`, output)];
}

/** The conversation that an object is, and the tools that it may call; null where it is none. Throws FinetuneError naming message and field. */
export function conversationOf(
  value: object,
  where: string,
): { readonly messages: readonly Message[]; readonly tools?: readonly unknown[] } | null {
  const fields = value as Fields;
  const listed = ["messages", "conversations"].find((field) => field in fields);
  if (listed === undefined && !("instruction" in fields && "output" in fields)) return null;
  if ("chosen" in fields && "rejected" in fields)
    throw new FinetuneError(
      `${where}: "chosen" and "rejected" are a preference, which can't be learnt here; append the chosen answer to the conversation`,
    );
  const messages = listed === undefined ? instructed(fields, where) : listedMessages(fields, listed, where);
  const system = fields["system"] ?? "";
  if (system !== "") messages.unshift({ role: "system", content: stringField(fields, "system", where) });
  const tools = listField(fields, "tools", where);
  return { messages, ...(tools && { tools }) };
}
