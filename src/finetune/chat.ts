/** Conversations in fine-tuning: what their templates are is `data/chat-template.ts`. */
export { type ChatPart, ChatTemplate, type ChatTemplateOptions, type Message } from "../data/chat-template.ts";
