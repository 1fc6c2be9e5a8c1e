/** Chat templates against transformers: what is rendered, and where a template complains. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";
import { ChatTemplate, ChatTemplateError, type Message } from "../../src/data/index.ts";

interface Fixture {
  readonly templates: Readonly<Record<string, string>>;
  readonly talks: Readonly<Record<string, readonly Message[]>>;
  readonly cases: readonly {
    readonly template: string;
    readonly talk: string;
    readonly prompt: boolean;
    readonly variables: Readonly<Record<string, unknown>>;
    readonly text?: string;
    readonly error?: string;
  }[];
}

const { templates, talks, cases } = JSON.parse(
  readFileSync(new URL("fixtures/chat-templates.json", import.meta.url), "utf8"),
) as Fixture;

for (const [name, source] of Object.entries(templates))
  test(`a template with the features of "${name}" renders as in transformers`, async () => {
    const now = () => new Date(2025, 2, 7, 16, 5, 9);
    const template = await ChatTemplate.create(source, { bosToken: "<s>", eosToken: "</s>", now });
    for (const { talk, prompt, variables, text, error } of cases.filter((each) => each.template === name)) {
      const render = () => template.render(talks[talk], { addGenerationPrompt: prompt, variables, where: talk });
      if (text !== undefined) assert.equal(render(), text, `${talk} ${prompt}`);
      else
        assert.throws(
          render,
          (e) =>
            e instanceof ChatTemplateError &&
            e.message.startsWith(`${talk}: the chat template fails on this conversation (line `) &&
            e.message.endsWith(error as string),
        );
    }
  });

test("a failing template names its line, whether it can't be read or complains", async () => {
  const broken = async (template: string, line: RegExp) =>
    assert.rejects(ChatTemplate.create(template), { name: "ChatTemplateError", message: line });
  await broken("{{ bos_token }}\n{% if x %}\n  {{ x + }}\n{% endif %}", /\(line 3, \{\{ x \+ \}\}\)/);
  await broken("{% for m in messages %}\n{{ m }}\n{% endif %}", /\(line 3, \{% endif %\}\)/);
  await broken("a\n{% for m in messages %}\n{% if m %}{{ m }}{% endif %}\n", /\(line 2, \{% for m in messages %\}\)/);
  await broken("{% if '%}' == x %}\n{% set = 3 %}{% endif %}", /\(line 2, \{% set = 3 %\}\)/);
  const template = await ChatTemplate.create(
    "{# a comment {{ #}\n{%- for m in messages %}\n  {%- if m.role == 'tool' %}\n    {{- raise_exception('no ' + m.role) }}\n  {%- endif %}\n{{ m.content }}\n{% endfor %}",
  );
  assert.throws(
    () =>
      template.render([
        { role: "user", content: "x" },
        { role: "tool", content: "y" },
      ]),
    {
      message:
        /^chat: the chat template fails on this conversation \(line 4, \{\{- raise_exception\('no ' \+ m.role\) \}\}\): no tool$/,
    },
  );
});
