/** Data for fine-tuning: JSON lines, tables and conversations become examples with what is learnt of them; mistakes are told by line and field. */
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import { fileURLToPath } from "node:url";
import { Rng } from "../../src/core/rng.ts";
import { CharTokenizer, tokenizerFromJSON } from "../../src/data/index.ts";
import { parseCsv } from "../../src/finetune/csv.ts";
import {
  ChatTemplate,
  classesOf,
  labelNumbers,
  labelValues,
  type Message,
  readChoices,
  readExamples,
  readLabelled,
  tokenizeExamples,
  tokenizeLabelled,
} from "../../src/finetune/index.ts";
import { readParquet } from "../../src/finetune/parquet.ts";

const room = mkdtempSync(join(tmpdir(), "nabla-data-"));
after(() => rmSync(room, { recursive: true, force: true }));
const file = (name: string, text: string): string => {
  const path = join(room, name);
  writeFileSync(path, text);
  return path;
};
const without = (examples: readonly object[]): object[] =>
  examples.map(({ where: _, ...rest }: { where?: string }) => rest);

describe("examples from files", () => {
  test("JSON lines hold texts, prompts with completions, and conversations", async () => {
    const messages = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "hello" },
    ];
    const lines = [{ text: "a b" }, { prompt: "2+2=", completion: "4" }, { messages }];
    const path = file("good.jsonl", `${lines.map((line) => JSON.stringify(line)).join("\r\n")}\n\n`);
    const examples = await readExamples(path);
    assert.deepEqual(without(examples), lines);
    assert.equal(examples[2].where, `${path}, line 3`);
  });

  test("a column of a table, and a whole text, are texts", async () => {
    const table = file("good.csv", '\ufeffid,body\n1,"a, ""b""\nc"\n2,d\n');
    assert.deepEqual(without(await readExamples(table, { text: "body" })), [{ text: 'a, "b"\nc' }, { text: "d" }]);
    const tabs = file("good.tsv", "text\tlabel\na,b\t1\n");
    assert.deepEqual(without(await readExamples(tabs)), [{ text: "a,b" }]);
    assert.deepEqual(without(await readExamples(file("story.txt", "Once.\n"))), [{ text: "Once.\n" }]);
  });

  test("conversations in the forms of ShareGPT and Alpaca, as lines or as one list", async () => {
    const call = { name: "add", arguments: { a: 1 } };
    const turns = [
      { from: "human", value: "one and one?" },
      { from: "function_call", value: JSON.stringify(call) },
      { from: "observation", value: "2" },
      { from: "gpt", value: "two" },
    ];
    const tools = [{ name: "add" }];
    const list = [
      { system: "Be brief.", conversations: turns, tools: JSON.stringify(tools) },
      { instruction: "Add", input: "1 1", output: "2" },
      { instruction: "Add", input: "", output: "2", history: [["hi", "hello"]] },
      { instruction: "Add", output: "2", text: "Add: 2" },
    ];
    const expected = [
      {
        messages: [
          { role: "system", content: "Be brief." },
          { role: "user", content: "one and one?" },
          { role: "assistant", content: "", tool_calls: [{ type: "function", function: call }] },
          { role: "tool", content: "2" },
          { role: "assistant", content: "two" },
        ],
        tools,
      },
      {
        messages: [
          { role: "user", content: "Add\n1 1" },
          { role: "assistant", content: "2" },
        ],
      },
      {
        messages: [
          { role: "user", content: "hi" },
          { role: "assistant", content: "hello" },
          { role: "user", content: "Add" },
          { role: "assistant", content: "2" },
        ],
      },
      { text: "Add: 2" },
    ];
    const whole = file("forms.json", JSON.stringify(list, null, 2));
    const lines = file("forms.jsonl", list.map((each) => JSON.stringify(each)).join("\n"));
    for (const path of [whole, lines, file("lines.json", readFileSync(lines, "utf8"))])
      assert.deepEqual(without(await readExamples(path)), expected);
    assert.equal((await readExamples(whole))[1].where, `${whole}, item 2`);
  });

  test("what a turn holds beside its text is the template's; a turn that calls a tool may say nothing", async () => {
    const asking = { role: "assistant", content: null, tool_calls: [{ function: { name: "add" } }] };
    const messages = [{ role: "user", content: "a" }, asking, { role: "assistant", content: "b", weight: 0 }];
    const path = file("calls.jsonl", JSON.stringify({ messages, tools: [{ name: "add" }] }));
    const [example] = await readExamples(path);
    assert.ok("messages" in example);
    assert.deepEqual(example.messages, [messages[0], { ...asking, content: "" }, messages[2]]);
    assert.deepEqual(example.tools, [{ name: "add" }]);
  });

  test("a table has pairs where it has no text", async () => {
    const pairs = file("pairs.csv", "prompt;completion;id\n2+2=;4;1\n");
    assert.deepEqual(without(await readExamples(pairs)), [{ prompt: "2+2=", completion: "4" }]);
    assert.deepEqual(without(await readExamples(pairs, { text: "completion" })), [{ text: "4" }]);
    const alpaca = file("alpaca.csv", "instruction,input,output\nAdd,,2\n");
    const messages = [
      { role: "user", content: "Add" },
      { role: "assistant", content: "2" },
    ];
    assert.deepEqual(without(await readExamples(alpaca)), [{ messages }]);
    const empty = file("empty-pair.csv", "prompt,completion\n2+2=,\n");
    await assert.rejects(readExamples(empty), /empty-pair\.csv, line 2: "completion" is empty/);
  });

  for (const [what, name, text, message] of [
    ["no field", "none.jsonl", "{}", /line 1: expected "text", .*; no field has a value/],
    ["a broken list", "list.json", '[{"text":"a"},]', /list\.json: not valid JSON \(.*\); expected a list of objects/],
    ["an item that is no object", "items.json", '[{"text":"a"},3]', /items\.json, item 2: expected an object, got 3/],
    [
      "a preference",
      "dpo.jsonl",
      '{"conversations":[{"from":"human","value":"a"}],"chosen":{},"rejected":{}}',
      /line 1: "chosen" and "rejected" are a preference/,
    ],
    [
      "a call that is no JSON",
      "call.jsonl",
      '{"conversations":[{"from":"function_call","value":"add 1"}]}',
      /line 1, message 1: "value" of a function_call must be JSON, got "add 1"/,
    ],
    [
      "a turn that says nothing",
      "null.jsonl",
      '{"messages":[{"role":"assistant","content":null}]}',
      /line 1, message 1: "content" must be a text, got null/,
    ],
    [
      "a weight that is none",
      "weight.jsonl",
      '{"messages":[{"role":"assistant","content":"a","weight":0.5}]}',
      /line 1, message 1: "weight" must be 0 \(not learnt\) or 1 \(learnt\), got 0\.5/,
    ],
    ["a broken line", "a.jsonl", '{"text":"x"}\n{"text":\n', /a\.jsonl, line 2: not valid JSON/],
    ["a line that is no object", "b.jsonl", '\n["x"]', /b\.jsonl, line 2: expected an object, got \["x"\]/],
    ["a field of another kind", "c.jsonl", '{"text":1}', /c\.jsonl, line 1: "text" must be a text, got 1/],
    ["a missing field", "d.jsonl", '{"prompt":"x"}', /d\.jsonl, line 1: "completion" must be a text, got nothing/],
    ["an empty completion", "e.jsonl", '{"prompt":"x","completion":""}', /line 1: "completion" is empty/],
    [
      "a question of multiple choice",
      "q.jsonl",
      '{"prompt":"x","choices":["a","b"]}',
      /line 1: a line of "choices" .* --metrics multiple-choice/,
    ],
    ["unknown fields", "f.jsonl", '{"input":"x"}', /line 1: expected "text", or "prompt".*the fields are "input"/],
    [
      "a message without role",
      "g.jsonl",
      '{"messages":[{"content":"x"}]}',
      /line 1, message 1: "role" must be a text, got nothing/,
    ],
    ["no messages", "h.jsonl", '{"messages":[]}', /line 1: "messages" must be a list of/],
    ["nothing", "i.jsonl", "\n", /i\.jsonl: there are no examples in it/],
    ["an unknown ending", "j.yaml", "{}", /j\.yaml: its ending is not one of \.json, \.jsonl/],
    ["a missing column", "k.csv", "a,b\n1,2\n", /k\.csv, line 1: there is no column "text"; there are "a", "b"/],
    ["a record that is too long", "l.csv", 'text,b\n"1\n2",2\n1,2,3\n', /l\.csv, line 4: 3 fields, expected 2/],
    ["an open quote", "m.csv", 'text\nx\n"y\n', /m\.csv, line 3: a quote is opened and never closed/],
    ["text after a quote", "n.csv", 'text\n"y"z\n', /n\.csv, line 2: after a field in quotes comes "z"/],
  ] as const)
    test(`${what} is told by line and field`, async () => {
      await assert.rejects(readExamples(file(name, text)), { name: "FinetuneError", message });
    });

  test("records of a table know their lines", () => {
    assert.deepEqual(
      parseCsv('a;b\n\n"x\ny";1\r\nz;\n', "t.csv").map(({ fields, line }) => [line, ...fields]),
      [
        [1, "a", "b"],
        [3, "x\ny", "1"],
        [5, "z", ""],
      ],
    );
    assert.deepEqual(parseCsv("a,b,", "t.csv")[0].fields, ["a", "b", ""]);
    assert.deepEqual(parseCsv("", "t.csv"), []);
  });

  test("labels become numbers; one that was not learnt is told by its line", async () => {
    const train = await readLabelled(file("train.csv", "review,stars\ngood,10\nbad,2\nfine,9\n"), {
      text: "review",
      label: "stars",
    });
    const classes = classesOf(train);
    assert.deepEqual(classes, ["2", "9", "10"]);
    assert.deepEqual([...labelNumbers(train, classes)], [2, 0, 1]);
    const lines = await readLabelled(file("test.jsonl", '{"text":"x","label":9}\n{"text":"y","label":3}\n'));
    assert.throws(
      () => labelNumbers(lines, classes),
      /test\.jsonl, line 2: the class "3" is not one that was learnt; those are "2", "9", "10"/,
    );
    await assert.rejects(readLabelled(file("empty.csv", "text,label\nx,\n")), /empty\.csv, line 2: "label" is empty/);
  });
});

const tables = fileURLToPath(new URL("../parity/fixtures/parquet", import.meta.url));

describe("Parquet, as pyarrow writes it", () => {
  for (const codec of ["snappy", "zstd", "gzip", "none"])
    test(`texts with labels, ${codec}`, async () => {
      const path = join(tables, `labelled-${codec}.parquet`);
      const examples = await readLabelled(path);
      assert.deepEqual(without(examples), [
        { text: "one", label: "1" },
        { text: 'é "two"\n', label: "0" },
        { text: "three", label: "10" },
      ]);
      assert.deepEqual(classesOf(examples), ["0", "1", "10"]);
      assert.equal(examples[2].where, `${path}, row 3`);
      const scores = await readLabelled(path, { label: "score" });
      assert.deepEqual([...labelValues(scores)], [0.5, -1, 2.25]);
      assert.deepEqual(classesOf(await readLabelled(path, { label: "sure" })), ["false", "true"]);
    });

  test("texts, prompts with completions, conversations and choices", async () => {
    const examples = await readExamples(join(tables, "mixed.parquet"));
    const messages = [
      { role: "user", content: "hi" },
      { role: "assistant", content: "hello" },
    ];
    assert.deepEqual(without(examples), [{ text: "a" }, { prompt: "2+2=", completion: "4" }, { messages }]);
    assert.deepEqual(without(await readChoices(join(tables, "choices.parquet"))), [
      { prompt: "2+2=", choices: ["3", "4"], answer: 1 },
      { prompt: "3+3=", choices: ["6", "7"], answer: 0 },
    ]);
  });

  test("mistakes are told by row and field", async () => {
    const faulty = join(tables, "faulty.parquet");
    await assert.rejects(readLabelled(faulty), {
      name: "FinetuneError",
      message: /row 2: "text" must be a text, got nothing/,
    });
    await assert.rejects(readLabelled(faulty, { text: "body", label: "class" }), {
      message: /faulty\.parquet: there is no column "body" or "class"; there are "text", "label", "answer"/,
    });
    await assert.rejects(readLabelled(faulty, { label: "class" }), /row 1: "class" must be a text, got nothing/);
    const bytes = readFileSync(faulty);
    for (const [name, damaged] of [
      ["empty.parquet", bytes.subarray(0, 0)],
      ["short.parquet", bytes.subarray(0, bytes.length - 9)],
      ["other.parquet", Buffer.from("a text that is not a table at all")],
    ] as const) {
      const path = join(room, name);
      writeFileSync(path, damaged);
      await assert.rejects(readLabelled(path), { name: "FinetuneError", message: /can't be read as Parquet/ });
    }
    await assert.rejects(readLabelled(join(room, "nowhere.parquet")), { name: "FileError" });
  });

  test("a damaged file is read, or says that it is damaged; no error is left that nobody catches", async () => {
    const seed = 20;
    const rng = new Rng(seed);
    const files = ["labelled-snappy", "labelled-zstd", "labelled-gzip", "mixed", "choices"].map((name) =>
      readFileSync(join(tables, `${name}.parquet`)),
    );
    let refused = 0;
    for (let i = 0; i < 600; i++) {
      const bytes = new Uint8Array(files[i % files.length]);
      for (let k = 1 + Math.floor(rng.uniform() * 4); k > 0; k--)
        bytes[Math.floor(rng.uniform() * bytes.length)] ^= 1 << Math.floor(rng.uniform() * 8);
      try {
        await readParquet(bytes, ["text", "label", "prompt", "completion", "messages", "choices", "answer"]);
      } catch (error) {
        assert.equal((error as Error).name, "FinetuneError", `seed ${seed}, file ${i}: ${(error as Error).stack}`);
        refused++;
      }
    }
    assert.ok(refused > 100, `only ${refused} were refused`);
  });
});

describe("labels", () => {
  const read = (): ReturnType<typeof readLabelled> => readLabelled(file("values.csv", "text,label\na b,1.5\nb,-2\n"));
  const tokenizer = {
    encode: (text: string, { addSpecialTokens = true } = {}) => [
      ...(addSpecialTokens ? [100] : []),
      ...[...text].map((c) => c.charCodeAt(0) - 96),
    ],
  };
  test("are classes or values, of texts with the tokens that the model expects around them", async () => {
    const examples = await read();
    assert.deepEqual(tokenizeLabelled(examples, tokenizer, { regression: true }), [
      { ids: [100, 1, -64, 2], target: 1.5 },
      { ids: [100, 2], target: -2 },
    ]);
    const classes = classesOf(examples);
    assert.deepEqual(
      tokenizeLabelled(examples, tokenizer, { classes }).map(({ target }) => target),
      [1, 0],
    );
    // parts of an example for a language model have nothing around them but what is asked for
    const [parts] = tokenizeExamples([{ where: "x", prompt: "a", completion: "b" }], tokenizer, {
      bosId: 99,
      eosId: 98,
    });
    assert.deepEqual(parts.ids, [99, 1, 2, 98]);
  });

  test("that do not fit are told by their line", async () => {
    const words = await readLabelled(file("words.csv", "text,label\na,1\nb,many\n"));
    assert.throws(() => tokenizeLabelled(words, tokenizer, { regression: true }), {
      name: "FinetuneError",
      message: /words\.csv, line 3: the label "many" is not a number/,
    });
    assert.throws(() => tokenizeLabelled(words, tokenizer, { classes: ["1"] }), /line 3: the class "many" is not one/);
  });
});

const chatml =
  "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" +
  "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
const messages: Message[] = [
  { role: "user", content: "one" },
  { role: "assistant", content: "two" },
  { role: "user", content: "three" },
  { role: "assistant", content: "four" },
  { role: "user", content: "five" },
];

describe("conversations", () => {
  test("what the assistant says is learnt, with what ends its turn", async () => {
    const template = await ChatTemplate.create(chatml);
    const parts = template.parts(messages);
    assert.deepEqual(
      parts.filter(({ learnt }) => learnt).map(({ text }) => text),
      ["two<|im_end|>\n", "four<|im_end|>\n"],
    );
    assert.equal(parts.map(({ text }) => text).join(""), template.render(messages.slice(0, 4)));
    const last = template.parts(messages, { turns: "last" });
    assert.deepEqual(
      last.filter(({ learnt }) => learnt).map(({ text }) => text),
      ["four<|im_end|>\n"],
    );
    assert.equal(last.map(({ text }) => text).join(""), template.render(messages.slice(0, 4)));
  });

  test("a turn of weight 0 is not learnt, tools reach the template, and one that knows none says so", async () => {
    const source =
      "{{ bos_token }}{% for t in tools or [] %}[{{ t.name }}]{% endfor %}{% for m in messages %}{{ m.role[0] }}:{{ m.content }}{% for c in m.tool_calls or [] %}" +
      "!{{ c.function.name }}{% endfor %};{% endfor %}{% if add_generation_prompt %}a:{% endif %}";
    const template = await ChatTemplate.create(source, { bosToken: "<" });
    const tokenizer = CharTokenizer.fromText("<[add]ua:!; oneyes");
    const call = { tool_calls: [{ function: { name: "add" } }] };
    const example = {
      where: "t, line 1",
      messages: [
        { role: "user", content: "one" },
        { role: "assistant", content: "yes", weight: 0 },
        { role: "user", content: "on" },
        { role: "assistant", content: "", ...call },
      ],
      tools: [{ name: "add" }],
    };
    const [{ ids, labels }] = tokenizeExamples([example], tokenizer, { template, bosId: 99, eosId: 98 });
    assert.equal(tokenizer.decode(ids), "<[add]u:one;a:yes;u:on;a:!add;"); // begun and ended by the template alone
    assert.equal(tokenizer.decode(Array.from(labels!).filter((id) => id >= 0)), "!add;");
    const deaf = await ChatTemplate.create(chatml);
    assert.throws(
      () => tokenizeExamples([example], tokenizer, { template: deaf }),
      /t, line 1: the model's chat template does not write "tools"; leave them out of the data/,
    );
    assert.throws(
      () => tokenizeExamples([{ where: "t, line 1", messages: example.messages }], tokenizer, { template: deaf }),
      /t, line 1: the model's chat template does not write "tool_calls"/,
    );
  });

  test("a template sees its tokens and variables, and its own complaints are told with the line", async () => {
    const template = await ChatTemplate.create(
      "{{ bos_token }}{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}{% endif %}{{ greeting }}",
      { bosToken: "<s>", variables: { greeting: "hey" } },
    );
    assert.equal(template.render(messages), "<s>hey");
    assert.throws(() => template.parts(messages.slice(1), { where: "chat.jsonl, line 7" }), {
      name: "ChatTemplateError",
      message:
        /chat\.jsonl, line 7: the chat template fails on this conversation \(line 1, \{\{ raise_exception\('user first'\) \}\}\): user first/,
    });
    await assert.rejects(ChatTemplate.create("{% for %}"), /the chat template can't be read \(line 1, \{% for %\}\)/);
  });

  test("a template may mark what the assistant says; around the marks it is trimmed as around any block", async () => {
    const template = await ChatTemplate.create(
      "{% for m in messages %}{{ m.role[0] }}:\n{%- generation %}\n{{- m.content -}} \n{% endgeneration %}\n  |\n{% endfor %}",
    );
    // transformers.utils.chat_template_utils.render_jinja_template
    assert.equal(template.render(messages.slice(0, 2)), "u:one  |\na:two  |\n");
  });

  test("what a template marks as the assistant's is learnt, also where earlier turns are written in another way", async () => {
    const template = await ChatTemplate.create(
      "{% for m in messages %}[{{ m.role[0] }}]{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% if loop.last %}!{% endif %}<e>{% endgeneration %}#{% else %}{{ m.content }}{% endif %}{% endfor %}",
    );
    // the spans of render_jinja_template(return_assistant_tokens_mask=True), by which TRL's assistant_only_loss goes
    const parts = template.parts(messages);
    assert.deepEqual(parts, [
      { text: "[u]one[a]", learnt: false },
      { text: "two<e>", learnt: true },
      { text: "#[u]three[a]", learnt: false },
      { text: "four!<e>", learnt: true },
      { text: "#", learnt: false },
    ]);
    const last = template.parts(messages, { turns: "last" }).map(({ learnt }) => learnt);
    assert.deepEqual(last, [false, false, false, true, false]);
  });

  test("a template that drops what was said before is noticed; its last turns can be learnt", async () => {
    const template = await ChatTemplate.create(
      "{% for m in messages %}[{{ m.role }}]{% if m.role == 'user' or loop.last %}{{ m.content }}{% endif %}{% endfor %}" +
        "{% if add_generation_prompt %}[assistant]{% endif %}",
    );
    assert.throws(
      () => template.parts(messages, { where: "x, line 1" }),
      /x, line 1, message 2: the chat template writes this turn in another way/,
    );
    assert.deepEqual(template.parts(messages, { turns: "last" }), [
      { text: "[user]one[assistant][user]three[assistant]", learnt: false },
      { text: "four", learnt: true },
    ]);
    assert.throws(() => template.parts(messages.slice(0, 1), { where: "y" }), /y: the assistant says nothing/);
  });
});

/** What Llama 2, Mistral and TinyLlama have: a space before a text's beginning, put there by the normalizer or the pre-tokenizer. */
const sentencePieces = (beginning: "normalizer" | "pre_tokenizer") => {
  const vocab = Object.fromEntries(
    ["<unk>", "</s>", "<0x0A>", "▁", "a", "b", "c", ":", "▁b", "bc"].map((t, i) => [t, i]),
  );
  return tokenizerFromJSON({
    version: "1.0",
    added_tokens: [
      { id: 1, content: "</s>", special: true, normalized: false, single_word: false, lstrip: false, rstrip: false },
    ],
    normalizer:
      beginning === "normalizer"
        ? {
            type: "Sequence",
            normalizers: [
              { type: "Prepend", prepend: "▁" },
              { type: "Replace", pattern: { String: " " }, content: "▁" },
            ],
          }
        : null,
    pre_tokenizer:
      beginning === "pre_tokenizer"
        ? { type: "Metaspace", replacement: "▁", prepend_scheme: "first", split: false }
        : null,
    post_processor: null,
    decoder: null,
    model: { type: "BPE", unk_token: "<unk>", byte_fallback: true, vocab, merges: ["▁ b", "b c"] },
  });
};

describe("what goes on with a text", () => {
  const [newline, space, a, b, c, colon, spaceB, bc] = [2, 3, 4, 5, 6, 7, 8, 9];
  for (const beginning of ["normalizer", "pre_tokenizer"] as const) {
    const tokenizer = sentencePieces(beginning);
    const ids = (prompt: string, completion: string): number[] =>
      Array.from(tokenizeExamples([{ where: "", prompt, completion }], tokenizer)[0].ids);

    test(`has no space of a tokenizer's own before it (${beginning})`, () => {
      // as transformers encodes prompt and completion in one
      assert.deepEqual(ids("a:", " bc"), [space, a, colon, spaceB, c]);
      assert.deepEqual(ids("a:", "bc"), [space, a, colon, bc]);
      assert.deepEqual(ids("a:\n", "b"), [space, a, colon, newline, b]);
      // "▁b" would reach over the boundary: a prompt is as generation meets it
      assert.deepEqual(ids("a: ", "b"), [space, a, colon, space, b]);
    });

    test(`in a conversation too (${beginning})`, async () => {
      const template = await ChatTemplate.create(
        "{% for m in messages %}{{ m.role[0] }}:\n{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}a:\n{% endif %}",
      );
      const talk = [
        { role: "b", content: "c" },
        { role: "assistant", content: "b" },
        { role: "b", content: "c" },
        { role: "assistant", content: "bc" },
      ];
      const [example] = tokenizeExamples([{ where: "", messages: talk }], tokenizer, { template, bosId: 0 });
      const whole = tokenizer.encode(template.render(talk), { addSpecialTokens: false });
      assert.deepEqual(example.ids, Array.from(whole));
      const learnt = Array.from(example.labels!).filter((id) => id >= 0);
      assert.deepEqual(learnt, [b, 1, bc, 1]);
    });
  }
});

describe("tokens of examples", () => {
  const tokenizer = CharTokenizer.fromText("abcdef<>|_imstarndeuo\n ");
  const decode = (ids: ArrayLike<number>) => tokenizer.decode(Array.from(ids).filter((id) => id >= 0 && id < 90));

  test("a prompt is not learnt, its completion and the end are", () => {
    const [example] = tokenizeExamples([{ where: "", prompt: "ab", completion: "cd" }], tokenizer, {
      bosId: 97,
      eosId: 99,
    });
    assert.equal(decode(example.ids), "abcd");
    const labels = Array.from(example.labels!);
    assert.deepEqual(labels.slice(0, 3), [-100, -100, -100]);
    assert.equal(decode(labels), "cd");
    assert.equal(labels.at(-1), 99);
    assert.equal(example.ids[0], 97);
  });

  test("a long text becomes windows in which each token is learnt once", () => {
    const examples = tokenizeExamples([{ where: "", text: "abcdefabcdef" }], tokenizer, { windows: 5 });
    assert.deepEqual(
      examples.map(({ ids }) => decode(ids)),
      ["abcdef", "fabcde", "ef"],
    );
    assert.equal(examples.map(({ labels }) => decode(Array.from(labels!).slice(1))).join(""), "bcdefabcdef");
  });

  test("a conversation needs a template; a tokenizer's error is told with the line", async () => {
    const talk = {
      where: "t.jsonl, line 4",
      messages: [
        { role: "user", content: "a" },
        { role: "assistant", content: "b" },
      ],
    };
    assert.throws(
      () => tokenizeExamples([talk], tokenizer),
      /t\.jsonl, line 4: a conversation needs the model's chat template/,
    );
    const template = await ChatTemplate.create(
      "{% for m in messages %}<{{ m.content }}>{% endfor %}{% if add_generation_prompt %}<{% endif %}",
    );
    const [example] = tokenizeExamples([talk], tokenizer, { template });
    assert.equal(decode(example.ids), "<a><b>");
    assert.equal(decode(Array.from(example.labels!)), "b>");
    assert.throws(
      () => tokenizeExamples([{ where: "t.jsonl, line 5", text: "xyz" }], tokenizer),
      /t\.jsonl, line 5: character "x"/,
    );
  });
});
