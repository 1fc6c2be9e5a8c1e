/**
 * Silero's voice-activity detector (https://github.com/snakers4/silero-vad, version 5, its branch for 16,000 samples a second): a
 * spectrum by a fixed convolution, four convolutions, an LSTM cell whose state goes from chunk to chunk, a layer of one output. Names
 * are those of the published safetensors. Speech or not for every 32 ms.
 */
import { ShapeError } from "../core/errors.ts";
import { showShape } from "../core/shape.ts";
import type { Source } from "../data/source.ts";
import { load } from "../formats/index.ts";
import { Conv1d, type FactoryOptions, LSTMCell, Module } from "../nn/index.ts";
import { cat, loop, pad, type Tensor, zeros } from "../tensor/index.ts";

/** Samples of a chunk, and those before it that the network sees too. */
const chunkSize = 512;
const contextSize = 64;
/** Samples of a frame of the spectrum, between two frames, and its frequencies. */
const frameSize = 256;
const hop = 128;
const frequencies = frameSize / 2 + 1;
const width = 128;

/** The LSTM's h and c, [batch, 128] each. */
export type SileroState = readonly [h: Tensor, c: Tensor];

/**
 * Recordings [batch, samples] of 16,000 samples a second between −1 and 1 → logits [batch, chunks], one for each 512 samples: their
 * sigmoid is the probability of speech. What is missing of the last chunk counts as silence.
 */
export class SileroVad extends Module {
  readonly sampleRate = 16000;
  readonly chunkSize = chunkSize;
  /** Cosines and sines under a window: it is the formula of a spectrum, and is not trained. */
  stft_conv: Conv1d;
  conv1: Conv1d;
  conv2: Conv1d;
  conv3: Conv1d;
  conv4: Conv1d;
  lstm_cell: LSTMCell;
  final_conv: Conv1d;
  constructor(where: FactoryOptions = {}) {
    super();
    this.stft_conv = new Conv1d(1, 2 * frequencies, frameSize, { stride: hop, bias: false, ...where });
    this.stft_conv.weight.requiresGrad_(false);
    this.conv1 = new Conv1d(frequencies, width, 3, { padding: 1, ...where });
    this.conv2 = new Conv1d(width, 64, 3, { stride: 2, padding: 1, ...where });
    this.conv3 = new Conv1d(64, 64, 3, { stride: 2, padding: 1, ...where });
    this.conv4 = new Conv1d(64, width, 3, { padding: 1, ...where });
    this.lstm_cell = new LSTMCell(width, width, where);
    this.final_conv = new Conv1d(width, 1, 1, where);
  }

  /** Chunks with their context [batch, 576] → what the LSTM reads of them, [batch, 128]. */
  encode(chunks: Tensor): Tensor {
    const spectrum = this.stft_conv.forward(pad(chunks, [0, hop / 2], { mode: "reflect" }).unsqueeze(1)); // [batch, 258, 4]
    const [real, imaginary] = [spectrum.narrow(1, 0, frequencies), spectrum.narrow(1, frequencies, frequencies)];
    let x = real.square().add(imaginary.square()).sqrt(); // [batch, 129, 4]
    for (const layer of [this.conv1, this.conv2, this.conv3, this.conv4]) x = layer.forward(x).relu();
    return x.squeeze(2);
  }

  /** States of the LSTM, [rows, 128] → logits [rows]. */
  #decide(h: Tensor): Tensor {
    return this.final_conv.forward(h.relu().unsqueeze(2)).flatten();
  }

  /**
   * One chunk after the other, as a microphone gives them: [batch, 64 + 512] samples, the first 64 of which are the last of the chunk
   * before (zeros at first), and the state that the chunk before has left → logits [batch] and the next state.
   */
  step(chunk: Tensor, state: SileroState = this.start(chunk)): { logits: Tensor; state: SileroState } {
    if (chunk.ndim !== 2 || chunk.shape[1] !== contextSize + chunkSize)
      throw new ShapeError(
        `SileroVad.step: a chunk must be [batch, ${contextSize + chunkSize}], ${contextSize} samples from before and ${chunkSize} new ones, got ${showShape(chunk.shape)}`,
      );
    const next = this.lstm_cell.forward(this.encode(chunk), state);
    return { logits: this.#decide(next[0]), state: next };
  }

  /** The state before the first chunk: zeros. */
  start({ shape, dtype, device }: Tensor): SileroState {
    return [zeros([shape[0], width], { dtype, device }), zeros([shape[0], width], { dtype, device })];
  }

  forward(audio: Tensor): Tensor {
    if (audio.ndim !== 2 || audio.shape[1] === 0)
      throw new ShapeError(`SileroVad: recordings must be [batch, samples], got ${showShape(audio.shape)}`);
    const [batch, samples] = audio.shape;
    const count = Math.ceil(samples / chunkSize);
    const chunks = pad(audio, [0, count * chunkSize - samples]).reshape(batch, count, chunkSize);
    const before = pad(chunks.narrow(2, chunkSize - contextSize, contextSize), [0, 0, 1, -1]); // zeros, then of the chunk before
    const features = this.encode(cat([before, chunks], 2).flatten(0, 1)).reshape(batch, count, width);
    const [h, c] = this.start(audio);
    const { outputs } = loop(
      (carries, { x }) => {
        const [h, c] = this.lstm_cell.forward(x, [carries.h, carries.c]);
        return { carries: { h, c }, outputs: { h } };
      },
      { carries: { h, c }, sequences: { x: features.transpose(0, 1) } },
    );
    return this.#decide(outputs.h.flatten(0, 1)).reshape(count, batch).transpose(0, 1);
  }
}

export interface SpeechOptions {
  /** Speech begins at this probability, and ends where it is 0.15 lower. Default: 0.5. */
  readonly threshold?: number;
  /** Seconds below which speech does not count. Default: 0.25. */
  readonly minSpeech?: number;
  /** Seconds of silence that end speech. Default: 0.1. */
  readonly minSilence?: number;
  /** Seconds added on both sides, as far as there is room. Default: 0.03. */
  readonly padding?: number;
}

/** From when to when somebody speaks, in seconds. */
export interface SpeechSegment {
  readonly start: number;
  readonly end: number;
}

/**
 * The stretches of speech in a recording, from the probabilities of its chunks in order (what get_speech_timestamps of silero-vad
 * gives, without its limit of length).
 */
export function speechSegments(probabilities: ArrayLike<number>, options: SpeechOptions = {}): SpeechSegment[] {
  const { threshold = 0.5, minSpeech = 0.25, minSilence = 0.1, padding = 0.03 } = options;
  const seconds = chunkSize / 16000;
  const total = probabilities.length * seconds;
  const found: SpeechSegment[] = [];
  let start = -1;
  let silentSince = -1;
  const close = (end: number): void => {
    if (end - start >= minSpeech) found.push({ start, end });
    start = silentSince = -1;
  };
  for (let i = 0; i < probabilities.length; i++) {
    const [p, now] = [probabilities[i], i * seconds];
    if (p >= threshold) {
      if (start < 0) start = now;
      silentSince = -1;
    } else if (start >= 0 && p < threshold - 0.15) {
      if (silentSince < 0) silentSince = now;
      if (now + seconds - silentSince >= minSilence) close(silentSince);
    }
  }
  if (start >= 0) close(silentSince < 0 ? total : silentSince);
  // between two that are near, each is given half of the room
  const room = (before: number, after: number): number => Math.min(padding, (after - before) / 2);
  return found.map(({ start, end }, i) => ({
    start: start - (i === 0 ? Math.min(padding, start) : room(found[i - 1].end, start)),
    end: end + (i === found.length - 1 ? Math.min(padding, total - end) : room(end, found[i + 1].start)),
  }));
}

/**
 * Loads `silero_vad_16k.safetensors`, in evaluation mode. Throws FileError, SafetensorsError, and NablaError where its tensors are
 * not those of this network.
 */
export async function loadSileroVad(source: Source, where: { readonly device?: string } = {}): Promise<SileroVad> {
  const model = new SileroVad(where);
  model.loadStateDict(await load(source, where));
  return model.eval();
}
