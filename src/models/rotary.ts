/**
 * Rotary position embeddings (Su et al. 2021, RoFormer): pairs of features of queries and keys are turned by an angle that
 * grows with the position, position · frequency, so that their product depends on the distance alone. And the ways to stretch
 * them over more positions than a model was trained on. The halves of a head are paired, (x_i, x_{i + d/2}), as in
 * transformers' checkpoints.
 */
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { cat, Tensor, tensor } from "../tensor/index.ts";
import { type ConfigReader, PretrainedError } from "./config.ts";

export interface RotaryConfig {
  /** Features of a head that turn: all, or the first ones. */
  readonly width: number;
  /** The base of the wavelengths. */
  readonly theta: number;
  readonly scaling: RotaryScaling;
}

/** Frequencies in radians a position for a sequence of `length` tokens, and a factor on cosine and sine. */
export interface Frequencies {
  readonly values: Float32Array;
  readonly attentionFactor: number;
}

/** How wavelengths follow from `theta`; only some kinds look at the length. */
export interface RotaryScaling {
  frequencies(width: number, theta: number, length: number): Frequencies;
  /** Lengths with the same frequencies share this text. */
  key(length: number): string;
  /**
   * Whether keys that were turned before a text grew to other frequencies are turned anew, so that the text is read again. Where not, they
   * stay as they are, as in transformers.
   */
  readonly readsAgain?: boolean;
}

/** θ^(−2i / width), i = 0 … width / 2 − 1. */
const plain = (width: number, theta: number): number[] =>
  Array.from({ length: width / 2 }, (_, i) => theta ** ((-2 * i) / width));

const fixed = (frequencies: (width: number, theta: number) => number[], attentionFactor = 1): RotaryScaling => ({
  frequencies: (width, theta) => ({ values: Float32Array.from(frequencies(width, theta)), attentionFactor }),
  key: () => "",
});

/** Positions divided by `factor` (Chen et al. 2023, Position Interpolation). */
function linear(config: ConfigReader): RotaryScaling {
  const factor = config.number("factor");
  return fixed((width, theta) => plain(width, theta).map((f) => f / factor));
}

/** Beyond the trained length the base grows with the sequence ("NTK-aware" interpolation; Peng et al. 2023, YaRN, section 3.1). */
function dynamic(config: ConfigReader, maxLength: number): RotaryScaling {
  const factor = config.number("factor");
  return {
    frequencies: (width, theta, length) => {
      const stretch = (factor * Math.max(length, maxLength)) / maxLength - (factor - 1);
      const base = theta * stretch ** (width / (width - 2));
      return { values: Float32Array.from(plain(width, base)), attentionFactor: 1 };
    },
    key: (length) => (length <= maxLength ? "" : String(length)),
  };
}

/** Llama 3.1: long wavelengths are stretched, short ones kept, and between the two it changes smoothly (Grattafiori et al. 2024). */
function llama3(config: ConfigReader, maxLength: number): RotaryScaling {
  const factor = config.number("factor");
  const [low, high] = [config.number("low_freq_factor"), config.number("high_freq_factor")];
  const trained = config.number("original_max_position_embeddings", maxLength);
  return fixed((width, theta) =>
    plain(width, theta).map((f) => {
      const turns = (trained * f) / (2 * Math.PI); // in the trained context
      if (turns > high) return f;
      if (turns < low) return f / factor;
      const smooth = (turns - low) / (high - low);
      return (1 - smooth) * (f / factor) + smooth * f;
    }),
  );
}

/** YaRN (Peng et al. 2023): a ramp over the features from stretched to kept, and scores that grow with the stretch. */
function yarn(config: ConfigReader, maxLength: number): RotaryScaling {
  const trained = config.number("original_max_position_embeddings", maxLength);
  const factor = config.number("factor", maxLength / trained);
  const [fast, slow] = [config.number("beta_fast", 32), config.number("beta_slow", 1)];
  const truncate = config.boolean("truncate", true);
  const temperature = (mscale: number): number => (factor <= 1 ? 1 : 0.1 * mscale * Math.log(factor) + 1);
  const [mscale, mscaleAll] = [config.number("mscale", 0), config.number("mscale_all_dim", 0)];
  const usual = mscale && mscaleAll ? temperature(mscale) / temperature(mscaleAll) : temperature(1);
  const frequencies = (width: number, theta: number): number[] => {
    /** The feature that turns `turns` times in the trained context. */
    const feature = (turns: number): number =>
      (width * Math.log(trained / (turns * 2 * Math.PI))) / (2 * Math.log(theta));
    const first = Math.max(truncate ? Math.floor(feature(fast)) : feature(fast), 0);
    const last = Math.min(truncate ? Math.ceil(feature(slow)) : feature(slow), width - 1);
    return plain(width, theta).map((f, i) => {
      const ramp = Math.min(1, Math.max(0, (i - first) / (last === first ? 0.001 : last - first)));
      return (f / factor) * ramp + f * (1 - ramp);
    });
  };
  return fixed(frequencies, config.number("attention_factor", usual));
}

/** LongRoPE (Ding et al. 2024): a factor a feature, one list for sequences within the trained length and one beyond it. */
function longrope(config: ConfigReader, maxLength: number, outer: ConfigReader): RotaryScaling {
  const trained = config.number(
    "original_max_position_embeddings",
    outer.number("original_max_position_embeddings", maxLength),
  );
  const [short, long] = [config.numbers("short_factor"), config.numbers("long_factor")];
  const factor = config.number("factor", maxLength / trained);
  const usual = factor <= 1 ? 1 : Math.sqrt(1 + Math.log(factor) / Math.log(trained));
  const attentionFactor = config.number("attention_factor", usual);
  return {
    frequencies: (width, theta, length) => {
      const factors = length > trained ? long : short;
      if (factors.length !== width / 2)
        throw new PretrainedError(
          `${config.source}: ${factors.length} factors of rope for ${width / 2} pairs of features`,
        );
      return { values: Float32Array.from(plain(width, theta).map((f, i) => f / factors[i])), attentionFactor };
    },
    key: (length) => (length > trained ? "long" : ""),
    readsAgain: true,
  };
}

type Scale = (config: ConfigReader, maxLength: number, outer: ConfigReader) => RotaryScaling;

/** By `rope_type` ("su" is an older name of longrope). */
const scalings: Readonly<Record<string, Scale>> = {
  default: () => fixed(plain),
  linear,
  dynamic,
  llama3,
  yarn,
  longrope,
  su: longrope,
};

export interface RotaryDefaults {
  readonly theta: number;
  /** Where transformers 4 writes the base, if not `rope_theta`. */
  readonly thetaField?: string;
  /** A kind of layers with rope parameters of its own. */
  readonly layerType?: string;
  /** Whether the older field `rope_scaling` is for these layers. Default: true. */
  readonly scaled?: boolean;
}

/**
 * The rope of a configuration: `rope_parameters` as transformers 5 writes it (of one kind of layers where there are several),
 * or `rope_theta` and `rope_scaling` as before. Throws PretrainedError for a kind that is not known.
 */
export function rotaryOf(config: ConfigReader, headDim: number, defaults: RotaryDefaults): RotaryConfig {
  const { theta, thetaField = "rope_theta", layerType, scaled = true } = defaults;
  const all = config.part("rope_parameters");
  const modern = layerType === undefined ? all : (all?.part(layerType) ?? null);
  const scaling = scaled ? (config.part("rope_scaling") ?? modern) : modern;
  const fallback = config.number(thetaField, theta);
  const partial = config.number("partial_rotary_factor", 1);
  // a factor may be a quotient, which rounding could have made a little smaller
  const share = modern?.number("partial_rotary_factor", partial) ?? partial;
  const width = 2 * Math.floor(Math.floor(headDim * share + 1e-6) / 2);
  const maxLength = config.count("max_position_embeddings", 2048);
  const kind = scaling?.has("rope_type") ? "rope_type" : "type";
  const scale = scalings[scaling?.choice(kind, Object.keys(scalings), "default") ?? "default"];
  return {
    width,
    theta: (modern ?? scaling)?.number("rope_theta", fallback) ?? fallback,
    scaling: scale(scaling ?? config, maxLength, config),
  };
}

/** How often the trained length fits into the longest sequence: dynamic scaling grows with it, the other kinds are for `max_position_embeddings`. */
export function contextStretch(config: ConfigReader): number {
  const scaling = config.part("rope_scaling") ?? config.part("rope_parameters");
  const kind = scaling?.raw["rope_type"] ?? scaling?.raw["type"];
  return kind === "dynamic" ? (scaling as ConfigReader).number("factor") : 1;
}

/** Cosine and sine of the angles of positions, [time, 1, width / 2] or [batch, time, 1, width / 2]: they grow over heads. */
export interface Rotation {
  readonly cos: Tensor;
  readonly sin: Tensor;
}

/** The angles of one RotaryConfig; its frequencies are put on a device once. */
export class Rotary {
  readonly config: RotaryConfig;
  readonly #frequencies = new Map<string, { readonly values: Tensor; readonly attentionFactor: number }>();
  constructor(config: RotaryConfig) {
    this.config = config;
  }

  /** The frequencies for a sequence of `length` tokens. */
  at(length: number, device: string): { readonly values: Tensor; readonly attentionFactor: number } {
    const { width, theta, scaling } = this.config;
    const key = `${device} ${scaling.key(length)}`;
    let found = this.#frequencies.get(key);
    if (!found) {
      const { values, attentionFactor } = scaling.frequencies(width, theta, length);
      found = { values: tensor(values, { shape: [1, 1, width / 2], device }), attentionFactor };
      // a kind that changes with every length would fill the memory with tables that nobody asks for again
      if (this.#frequencies.size >= 8) this.#frequencies.clear();
      this.#frequencies.set(key, found);
    }
    return found;
  }

  /**
   * The rotation of int32 positions [time, 1, 1] or [batch, time, 1, 1], like `x` in dtype and device. `end` is the length of the
   * sequence so far.
   */
  rotation(positions: Node, end: number, x: Tensor): Rotation {
    const { values, attentionFactor } = this.at(end, x.device);
    const angles = new Tensor(ops.cast(positions, "float32")).mul(values);
    const scaled = (y: Tensor): Tensor => (attentionFactor === 1 ? y : y.mul(attentionFactor)).to(x.dtype);
    return { cos: scaled(angles.cos()), sin: scaled(angles.sin()) };
  }
}

/** x [batch, time, heads, width], its first features turned, two for each angle. */
export function rotate(x: Tensor, { cos, sin }: Rotation): Tensor {
  const half = cos.shape[cos.ndim - 1];
  const width = x.shape[3];
  const a = x.narrow(3, 0, half);
  const b = x.narrow(3, half, half);
  const turned = [a.mul(cos).sub(b.mul(sin)), b.mul(cos).add(a.mul(sin))];
  if (width > 2 * half) turned.push(x.narrow(3, 2 * half, width - 2 * half));
  return cat(turned, { dim: 3 });
}
