/** Wrong input of every kind: a clear message, an exit code that says which kind, and nothing lost or left behind. */
import assert from "node:assert/strict";
import {
  copyFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  truncateSync,
  writeFileSync,
} from "node:fs";
import { join } from "node:path";
import { before, describe, test } from "node:test";
import { gzipSync } from "node:zlib";
import {
  type Finished,
  logOf,
  makeRoom,
  nabla,
  type RunOptions,
  tinyGpt,
  weightsOf,
  writeImages,
  writeText,
} from "./support.ts";

const room = makeRoom();
const text = writeText(join(room, "text.txt"));
const gpt = join(room, "gpt");
const digits = join(room, "digits");
const images = join(room, "images");

before(async () => {
  mkdirSync(images);
  writeImages(images, 64);
  writeImages(images, 32, { split: "t10k" });
  const runs = await Promise.all([
    nabla(tinyGpt(text, gpt, "--steps", "6", "--checkpoint-every", "2")),
    nabla(`train classifier --data ${images} --out ${digits} --model mlp --hidden 8 --batch 16 --epochs 1`.split(" ")),
  ]);
  for (const { code, stderr } of runs) assert.equal(code, 0, stderr);
});

/** A message for a person: no stack, the expected words, the expected code. */
function expectError({ code, stderr }: Finished, expected: number, message: RegExp): void {
  assert.match(stderr, message);
  assert.equal(code, expected, stderr);
  assert.doesNotMatch(stderr, /\n {4}at /);
}

async function fails(
  args: readonly string[],
  code: number,
  message: RegExp,
  options: RunOptions = {},
): Promise<Finished> {
  const result = await nabla(args, options);
  expectError(result, code, message);
  return result;
}

const file = (name: string, content: string | Uint8Array): string => {
  const path = join(room, name);
  writeFileSync(path, content);
  return path;
};

describe("the command line itself", { concurrency: 2 }, () => {
  test("a flag that is missing, unknown, or no number", async () => {
    await fails(["train", "gpt"], 2, /--data is missing/);
    await fails(["train", "gpt", "--data", text], 2, /--out is missing/);
    await fails(["train", "gpt", "--frobnicate"], 2, /unknown option '--frobnicate'/);
    await fails(
      ["train", "gpt", "--layers", "many"],
      2,
      /--layers <n>' argument 'many' is invalid. Expected a whole number ≥ 1/,
    );
    await fails(tinyGpt(text, join(room, "x"), "--heads", "3"), 2, /--width 8 is not a multiple of --heads 3/);
    await fails(["train", "gpt", "--resume", gpt, "--layers", "3"], 2, /--layers can't be combined with --resume/);
    await fails(["dance"], 2, /unknown command 'dance'/);
  });
});

describe("text", { concurrency: 2 }, () => {
  const cases: [string, () => string, RegExp][] = [
    ["empty", () => file("empty.txt", ""), /empty\.txt: the file is empty/],
    [
      "binary",
      () => file("binary.txt", Uint8Array.of(65, 0, 66)),
      /binary\.txt: not a text file: a zero byte at offset 1/,
    ],
    [
      "not UTF-8",
      () => file("latin.txt", Uint8Array.of(0x63, 0x61, 0x66, 0xe9, 0x0a)),
      /latin\.txt: not UTF-8: byte 0xe9 at offset 3/,
    ],
    ["too short", () => file("short.txt", "ab\n"), /too few/],
    ["missing", () => join(room, "nowhere.txt"), /nowhere\.txt: there is no such file/],
  ];
  for (const [name, make, message] of cases)
    test(`that is ${name}: an error, and no run is left behind`, async () => {
      const out = join(room, `run-${name.replaceAll(" ", "-")}`);
      await fails(tinyGpt(make(), out), name === "missing" ? 74 : 65, message);
      assert.equal(existsSync(out), false);
    });

  test("a prompt with a character that the model has never seen", async () => {
    await fails(["generate", gpt, "--prompt", "日"], 65, /"日" \(U\+65E5\) at offset 0 is not among/);
  });
});

describe("images", { concurrency: 2 }, () => {
  const train = (data: string, ...more: string[]) =>
    `train classifier --data ${data} --out ${data}-run --model mlp --batch 8 --epochs 1`.split(" ").concat(more);
  const folder = (name: string): string => {
    const path = join(room, name);
    cpSync(images, path, { recursive: true });
    return path;
  };

  test("a truncated IDX, plain or gzip, and a folder without any", async () => {
    const plain = folder("plain");
    truncateSync(join(plain, "train-images-idx3-ubyte"), 1000);
    await fails(
      train(plain),
      65,
      /train-images-idx3-ubyte: uint8 of shape \[64, 8, 8\] takes \d+ bytes, the file has 1000; it is truncated/,
    );
    const zipped = folder("zipped");
    const whole = gzipSync(readFileSync(join(zipped, "train-labels-idx1-ubyte")));
    writeFileSync(join(zipped, "train-labels-idx1-ubyte"), whole.subarray(0, whole.length - 9));
    await fails(train(zipped), 65, /the gzip data is damaged or truncated/);
    const empty = join(room, "no-images");
    mkdirSync(empty);
    await fails(train(empty), 65, /no IDX files found/);
    for (const data of [plain, zipped, empty]) assert.equal(existsSync(`${data}-run`), false);
  });

  test("a label beyond the classes that were asked for", async () => {
    await fails(train(images, "--classes", "3"), 65, /a label is 3, but with --classes 3 labels are 0 … 2/);
  });

  test("a label or image size that a trained model does not have leaves the model as it was", async () => {
    const strange = join(room, "strange");
    mkdirSync(strange);
    writeImages(strange, 16, { split: "t10k", labels: (i) => (i === 5 ? 9 : i % 4) });
    const weights = weightsOf(digits);
    await fails(
      ["eval", digits, "--data", strange],
      65,
      /label 9 \(of image 5\) is out of range: the model has 4 classes/,
    );
    assert.ok(weightsOf(digits).equals(weights));
  });
});

describe("runs and checkpoints", { concurrency: 2 }, () => {
  const copyOf = (run: string, name: string): string => {
    const path = join(room, name);
    cpSync(run, path, { recursive: true });
    return path;
  };

  test("no run, another kind of run, a run that is there already", async () => {
    await fails(["train", "gpt", "--resume", join(room, "nothing")], 65, /there is no folder/);
    await fails(["train", "gpt", "--resume", room], 65, /holds no run/);
    await fails(["train", "gpt", "--resume", digits], 65, /is a run of kind "classifier", not "gpt"/);
    await fails(["generate", digits], 65, /is a run of kind "classifier"/);
    const weights = weightsOf(gpt);
    await fails(tinyGpt(text, gpt), 65, /already holds a run/);
    assert.ok(weightsOf(gpt).equals(weights));
  });

  test("a truncated checkpoint is passed over for the one before it; if all are damaged, that is said", async () => {
    const run = copyOf(gpt, "truncated");
    // as if it had been killed before its end
    for (const name of ["result.json"]) writeFileSync(join(run, name), "");
    const checkpoints = readdirSync(run)
      .filter((name) => name.startsWith("checkpoint-"))
      .sort();
    assert.deepEqual(checkpoints, ["checkpoint-4", "checkpoint-6"]);
    const { rmSync } = await import("node:fs");
    rmSync(join(run, "result.json"));
    truncateSync(join(run, "checkpoint-6", "state.safetensors"), 100);
    const resumed = await nabla(["train", "gpt", "--resume", run]);
    assert.equal(resumed.code, 0, resumed.stderr);
    assert.match(
      resumed.stdout,
      /a damaged checkpoint is passed over: .*checkpoint-6: state\.safetensors has 100 bytes/,
    );
    assert.match(resumed.stdout, /going on after step 4/);
    assert.ok(weightsOf(run).equals(weightsOf(gpt)));
    assert.deepEqual(logOf(run), logOf(gpt));

    rmSync(join(run, "result.json"));
    for (const name of readdirSync(run).filter((n) => n.startsWith("checkpoint-")))
      truncateSync(join(run, name, "state.json"), 3);
    await fails(["train", "gpt", "--resume", run], 65, /no checkpoint is whole/);
  });

  test("weights that are truncated, or of another shape", async () => {
    const run = copyOf(gpt, "cut");
    const path = join(run, "model.safetensors");
    const whole = readFileSync(path);
    const { rmSync } = await import("node:fs");
    rmSync(path);
    writeFileSync(path, whole.subarray(0, whole.length - 50));
    await fails(["generate", run], 65, /model\.safetensors: .*the file is truncated/);
    rmSync(path);
    const other = join(room, "wider");
    const made = await nabla(tinyGpt(text, other, "--width", "12", "--steps", "1"));
    assert.equal(made.code, 0, made.stderr);
    copyFileSync(join(other, "model.safetensors"), path);
    await fails(
      ["generate", run],
      65,
      /does not fit .*config\.json: .*wrong shapes: "transformer\.wte\.weight" has shape \[\d+, 12\]/,
    );
  });
});

describe("disks", { concurrency: 2 }, () => {
  test("an output path below a file", async () => {
    await fails(tinyGpt(text, join(text, "run")), 74, /text\.txt is a file, so nothing can lie below it/);
  });

  test("a full disk: said clearly, the last checkpoint stays, and the run goes on when there is room", async () => {
    const run = join(room, "full");
    const flags = tinyGpt(text, run, "--steps", "6", "--checkpoint-every", "2");
    const size = readdirSync(join(gpt, "checkpoint-4")).reduce(
      (n, name) => n + readFileSync(join(gpt, "checkpoint-4", name)).length,
      0,
    );
    const result = await fails(flags, 74, /the disk is full \(ENOSPC\)/, {
      env: { NABLA_TEST_ENOSPC: String(Math.round(size * 1.5) + 3000) },
    });
    assert.match(result.stderr, /earlier checkpoints are as they were/);
    assert.match(result.stderr, new RegExp(`go on with: npx nabla train gpt --resume ${run}`));
    const resumed = await nabla(["train", "gpt", "--resume", run]);
    assert.equal(resumed.code, 0, resumed.stderr);
    assert.match(resumed.stdout, /going on after step 2/);
    assert.ok(weightsOf(run).equals(weightsOf(gpt)));
    assert.deepEqual(logOf(run), logOf(gpt));
  });
});

describe("training that goes wrong", { concurrency: 2 }, () => {
  test("a loss that is no longer finite stops the run; --detect-anomaly says where it was born", async () => {
    const flags = (out: string, ...more: string[]) =>
      tinyGpt(
        text,
        join(room, out),
        "--steps",
        "40",
        "--lr",
        "1e30",
        "--warmup",
        "0",
        "--clip",
        "0",
        "--checkpoint-every",
        "1",
        ...more,
      );
    const plain = await fails(flags("diverged"), 76, /step \d+: the loss is (NaN|Infinity), so training has stopped/);
    assert.match(plain.stderr, /with its last checkpoint in .*checkpoint-\d+/);
    await fails(flags("anomaly", "--detect-anomaly"), 76, /the first operation to give it is \w+/);
  });
});

describe("devices", { concurrency: 2 }, () => {
  test("a device that does not exist", async () => {
    await fails(["generate", gpt, "--device", "abacus"], 69, /there is no device "abacus"; known are/);
  });

  test("cpu asked for by name without a compiler is an error; nobody asking, it is said once and wasm serves", async () => {
    const env = {
      NABLA_CC: join(room, "no-such-compiler"),
      NABLA_DEVICE: undefined,
      HOME: room,
      XDG_CACHE_HOME: join(room, "cache"),
    };
    await fails(["generate", gpt, "--device", "cpu"], 69, /device "cpu" does not open here: .*compiler/i, { env });
    await fails(["generate", gpt], 69, /device "cpu" does not open here/, { env: { ...env, NABLA_DEVICE: "cpu" } });
    const served = await nabla(["generate", gpt, "--tokens", "5"], { env });
    assert.equal(served.code, 0, served.stderr);
    assert.equal(served.stderr.match(/does not open here/g)?.length, 1, served.stderr);
    assert.match(served.stderr, /computed by the wasm backend/);
  });
});
