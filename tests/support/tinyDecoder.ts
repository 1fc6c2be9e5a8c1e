/** The configuration of a decoder of two layers, small enough for every backend. */
import type { DecoderConfig } from "../../src/models/index.ts";

export const tinyRotary = {
  width: 4,
  theta: 100,
  scaling: {
    frequencies: (width: number, theta: number) => ({
      values: Float32Array.from({ length: width / 2 }, (_, i) => theta ** ((-2 * i) / width)),
      attentionFactor: 1,
    }),
    key: () => "",
  },
};

/** The first layer sees `window` tokens. */
export const tinyDecoder = (window: number | null = null): DecoderConfig => ({
  vocabSize: 23,
  hiddenSize: 16,
  intermediateSize: 24,
  numHeads: 4,
  numKeyValueHeads: 2,
  headDim: 4,
  contextLength: 300,
  layers: [
    { window, rotary: tinyRotary },
    { window: null, rotary: tinyRotary },
  ],
  activation: "silu",
  normEps: 1e-6,
  zeroCentredNorms: false,
  sandwichNorms: false,
  queryKeyNorms: false,
  bias: { qkv: false, out: false, mlp: false },
  fusedProjections: false,
  embeddingScale: 1,
  attentionScale: 0.5,
  attentionSoftcap: null,
  logitSoftcap: null,
  attentionDropout: 0,
  tieEmbeddings: true,
  initializerRange: 0.3,
});
