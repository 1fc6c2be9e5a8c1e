/**
 * From letters to phonemes: the network of the Python package g2p_en (Kyubyong Park, https://github.com/Kyubyong/g2p) for words that
 * are in no dictionary. A GRU reads the letters, and its last state begins a GRU cell that writes ARPAbet phonemes, with the stress
 * of vowels as a digit (0 none, 1 primary, 2 secondary).
 */
import { NablaError } from "../core/errors.ts";
import { type FormatSource, loadNpz } from "../formats/index.ts";
import { Embedding, type FactoryOptions, GRU, GRUCell, Linear, Module, type StateDict } from "../nn/index.ts";
import { loop, noGrad, type Tensor, tensor } from "../tensor/index.ts";
import { PretrainedError } from "./config.ts";

/** In the order of the checkpoint's ids. (Functions, so that a page that does not use them does not have the texts.) */
export const graphemes = (): string[] => ["<pad>", "<unk>", "</s>", ..."abcdefghijklmnopqrstuvwxyz"];
export const phonemes = (): string[] => {
  const sounds = "AA AE AH AO AW AY B CH D DH EH ER EY F G HH IH IY JH K L M N NG OW OY P R S SH T TH UH UW V W Y Z ZH";
  const spoken = sounds
    .split(" ")
    .flatMap((sound) => (/^[AEIOU]/.test(sound) ? [0, 1, 2].map((i) => sound + i) : sound));
  spoken.splice(spoken.indexOf("UW0"), 0, "UW");
  return ["<pad>", "<unk>", "<s>", "</s>", ...spoken];
};
const unknown = 1;
const endOfWord = 2;
/** "<s>" and "</s>" of the phonemes. */
const begin = 2;
const end = 3;

/** The ids of a word's letters and its end. Letters other than a to z, at any case, are unknown. */
export const graphemeIds = (word: string): number[] => [
  ...Array.from(word.toLowerCase(), (letter) => (/[a-z]/.test(letter) ? graphemes().indexOf(letter) : unknown)),
  endOfWord,
];

/** Words as letters in, phonemes out: `pronounce` for one word, `greedy` for many, `forward` to train. */
export class G2p extends Module {
  enc_emb: Embedding;
  encoder: GRU;
  dec_emb: Embedding;
  decoder: GRUCell;
  fc: Linear;
  constructor(hiddenSize = 256, where: FactoryOptions = {}) {
    super();
    this.enc_emb = new Embedding(graphemes().length, hiddenSize, where);
    this.encoder = new GRU(hiddenSize, hiddenSize, { batchFirst: true, ...where });
    this.dec_emb = new Embedding(phonemes().length, hiddenSize, where);
    this.decoder = new GRUCell(hiddenSize, hiddenSize, where);
    this.fc = new Linear(hiddenSize, phonemes().length, where);
  }

  /** Letters [batch, letters], words of one length with their ends → the state that the decoder begins with, [batch, hidden]. */
  encode(letters: Tensor): Tensor {
    return this.encoder.forward(this.enc_emb.forward(letters))[1].squeeze(0);
  }

  /**
   * For training: letters [batch, letters] and the phonemes that come before each [batch, steps], "<s>" first → logits of the next,
   * [batch, steps, 74].
   */
  forward(letters: Tensor, before: Tensor): Tensor {
    const { outputs } = loop(
      ([h], [x]) => {
        const next = this.decoder.forward(x, h);
        return { carries: [next], outputs: [next] };
      },
      { carries: [this.encode(letters)], sequences: [this.dec_emb.forward(before).transpose(0, 1)] },
    );
    return this.fc.forward(outputs[0].transpose(0, 1));
  }

  /** The likeliest phonemes one after the other: letters [batch, letters] → ids [batch, steps]; what follows "</s>" means nothing. */
  greedy(letters: Tensor, steps = 20): Tensor {
    const first = tensor(new Int32Array(letters.shape[0]).fill(begin), { device: letters.device });
    const { outputs } = loop(
      ([h, last]) => {
        const next = this.decoder.forward(this.dec_emb.forward(last), h);
        const likeliest = this.fc.forward(next).argmax({ dim: -1 });
        return { carries: [next, likeliest], outputs: [likeliest] };
      },
      { carries: [this.encode(letters), first], count: steps },
    );
    return outputs[0].transpose(0, 1);
  }

  /** A word's phonemes, at most 20. Throws NablaError for a word without letters. */
  async pronounce(word: string): Promise<string[]> {
    if (word.trim() === "") throw new NablaError("G2p.pronounce: there are no letters");
    const letters = tensor([graphemeIds(word.trim())], { dtype: "int32", device: this.fc.weight.device });
    const names = phonemes();
    const ids = Array.from(await noGrad(() => this.greedy(letters)).data());
    return ids.slice(0, ids.includes(end) ? ids.indexOf(end) : ids.length).map((id) => names[id]);
  }
}

/** The names of g2p_en's arrays, and ours. */
const keys: Readonly<Record<string, string>> = {
  enc_emb: "enc_emb.weight",
  enc_w_ih: "encoder.weight_ih_l0",
  enc_w_hh: "encoder.weight_hh_l0",
  enc_b_ih: "encoder.bias_ih_l0",
  enc_b_hh: "encoder.bias_hh_l0",
  dec_emb: "dec_emb.weight",
  dec_w_ih: "decoder.weight_ih",
  dec_w_hh: "decoder.weight_hh",
  dec_b_ih: "decoder.bias_ih",
  dec_b_hh: "decoder.bias_hh",
  fc_w: "fc.weight",
  fc_b: "fc.bias",
};

/**
 * Loads g2p_en's `checkpoint20.npz`, in evaluation mode. Throws FileError, FormatError, and NablaError where its arrays are not
 * those of this network.
 */
export async function loadG2p(source: FormatSource, where: { readonly device?: string } = {}): Promise<G2p> {
  const arrays = await loadNpz(source, where);
  const missing = Object.keys(keys).filter((name) => !(name in arrays));
  if (missing.length) throw new PretrainedError(`loadG2p: there is no ${missing.join(", ")} in this file`);
  const tensors: StateDict = {};
  for (const [name, x] of Object.entries(arrays)) tensors[keys[name] ?? name] = x;
  const model = new G2p(arrays["enc_emb"].shape[1], where);
  model.loadStateDict(tensors);
  return model.eval();
}
