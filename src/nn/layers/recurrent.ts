/**
 * Recurrent layers, RNN, LSTM and GRU, of any number of layers and of one direction or two, and their cells for one step.
 * Each layer in each direction is one composite (graph/composites/recurrent.ts); the names in the state dict are PyTorch's.
 */
import { NablaError, ShapeError } from "../../core/errors.ts";
import { type Shape, showShape } from "../../core/shape.ts";
import { raised } from "../../graph/autocast.ts";
import { type CellName, carriesOf, gatesOf, recurrent } from "../../graph/composites/index.ts";
import type { Node } from "../../graph/node.ts";
import * as ops from "../../graph/ops.ts";
import { Tensor } from "../../tensor/tensor.ts";
import { dropoutNode } from "../functional/dropout.ts";
import { uniformLike } from "../init.ts";
import { Module } from "../module.ts";
import { Parameter } from "../parameter.ts";
import { expectSize, type FactoryOptions, made } from "./linear.ts";

export interface RecurrentOptions extends FactoryOptions {
  /** Layers on top of each other. Default: 1. */
  readonly numLayers?: number;
  /** Default: true. */
  readonly bias?: boolean;
  /** Sequences are [batch, time, width] instead of [time, batch, width]; states are [.., batch, hidden] either way. */
  readonly batchFirst?: boolean;
  /** Of what each layer but the last gives, in training. Default: 0. */
  readonly dropout?: number;
  /** A second layer beside each that goes from the end to the beginning. */
  readonly bidirectional?: boolean;
}

/** Uniform within ±1 / √hidden, as PyTorch's. */
const weight = (shape: Shape, hiddenSize: number, options: FactoryOptions): Parameter => {
  const bound = 1 / Math.sqrt(hiddenSize);
  return new Parameter(uniformLike(shape, -bound, bound, made(options)));
};

abstract class RecurrentBase extends Module {
  [weight: `weight_${string}`]: Parameter;
  [bias: `bias_${string}`]: Parameter;
  readonly inputSize: number;
  readonly hiddenSize: number;
  readonly numLayers: number;
  readonly bias: boolean;
  readonly batchFirst: boolean;
  readonly dropout: number;
  readonly bidirectional: boolean;
  readonly #cell: CellName;

  constructor(cell: CellName, inputSize: number, hiddenSize: number, options: RecurrentOptions) {
    super();
    const { numLayers = 1, bias = true, batchFirst = false, dropout = 0, bidirectional = false } = options;
    const name = this.constructor.name;
    expectSize(name, "inputSize", inputSize);
    expectSize(name, "hiddenSize", hiddenSize);
    expectSize(name, "numLayers", numLayers);
    if (!(dropout >= 0 && dropout <= 1))
      throw new NablaError(`${name}: dropout must be a probability between 0 and 1, got ${dropout}`);
    this.#cell = cell;
    this.inputSize = inputSize;
    this.hiddenSize = hiddenSize;
    this.numLayers = numLayers;
    this.bias = bias;
    this.batchFirst = batchFirst;
    this.dropout = dropout;
    this.bidirectional = bidirectional;
    const rows = gatesOf(cell) * hiddenSize;
    for (let layer = 0; layer < numLayers; layer++)
      for (const suffix of this.#suffixes(layer)) {
        const width = layer === 0 ? inputSize : hiddenSize * (bidirectional ? 2 : 1);
        this[`weight_ih_${suffix}`] = weight([rows, width], hiddenSize, options);
        this[`weight_hh_${suffix}`] = weight([rows, hiddenSize], hiddenSize, options);
        if (!bias) continue;
        this[`bias_ih_${suffix}`] = weight([rows], hiddenSize, options);
        this[`bias_hh_${suffix}`] = weight([rows], hiddenSize, options);
      }
  }

  #suffixes(layer: number): string[] {
    return this.bidirectional ? [`l${layer}`, `l${layer}_reverse`] : [`l${layer}`];
  }

  /** The sequence of the last layer, and the last states of all, [layers · directions, batch, hidden] each. */
  protected run(
    x: Tensor,
    given: readonly Tensor[] | null,
    nonlinearity?: "tanh" | "relu",
  ): { output: Tensor; states: Tensor[] } {
    const name = this.constructor.name;
    const isBatched = x.ndim === 3;
    if ((!isBatched && x.ndim !== 2) || x.shape[x.ndim - 1] !== this.inputSize)
      throw new ShapeError(
        `${name}: expected ${this.batchFirst ? "[batch, time, " : "[time, batch, "}${this.inputSize}] or [time, ${this.inputSize}], got ${showShape(x.shape)}`,
      );
    let sequence = raised(isBatched ? x.node : ops.unsqueeze(x.node, 1));
    if (isBatched && this.batchFirst) sequence = ops.permute(sequence, [1, 0, 2]);
    const batch = sequence.shape[1];
    const perLayer = this.bidirectional ? 2 : 1;
    const count = carriesOf(this.#cell);
    const firsts = this.#firstStates(name, given, count, perLayer * this.numLayers, batch, isBatched, sequence);
    const lasts: Node[][] = Array.from({ length: count }, () => []);
    for (let layer = 0; layer < this.numLayers; layer++) {
      if (layer > 0 && this.training && this.dropout > 0) sequence = dropoutNode(sequence, this.dropout);
      const sides = this.#suffixes(layer).map((suffix, direction) => {
        const k = layer * perLayer + direction;
        const { y, states } = recurrent(this.#cell, {
          x: sequence,
          states: firsts.map((all) => raised(ops.squeeze(ops.narrow(all, 0, k, 1), 0))),
          weights: [this[`weight_ih_${suffix}`].node, this[`weight_hh_${suffix}`].node],
          biases: this.bias ? [this[`bias_ih_${suffix}`].node, this[`bias_hh_${suffix}`].node] : null,
          reverse: direction === 1,
          nonlinearity,
        });
        states.forEach((state, i) => {
          lasts[i].push(ops.unsqueeze(state, 0));
        });
        return y;
      });
      sequence = sides.length === 1 ? sides[0] : ops.concat(sides, 2);
    }
    const output = !isBatched
      ? ops.squeeze(sequence, 1)
      : this.batchFirst
        ? ops.permute(sequence, [1, 0, 2])
        : sequence;
    const states = lasts.map((all) => {
      const stacked = ops.concat(all, 0);
      return new Tensor(isBatched ? stacked : ops.squeeze(stacked, 1));
    });
    return { output: new Tensor(output), states };
  }

  #firstStates(
    name: string,
    given: readonly Tensor[] | null,
    count: number,
    layers: number,
    batch: number,
    isBatched: boolean,
    like: Node,
  ): Node[] {
    const shape = [layers, batch, this.hiddenSize];
    if (!given) return Array.from({ length: count }, () => ops.full(shape, 0, like.dtype));
    const expected = isBatched ? shape : [layers, this.hiddenSize];
    return given.map((state, i) => {
      if (state.shape.join() !== expected.join())
        throw new ShapeError(
          `${name}: the first ${i === 0 ? "hidden" : "cell"} state must be ${showShape(expected)} ([layers · directions${isBatched ? ", batch" : ""}, hidden]), got ${showShape(state.shape)}`,
        );
      return isBatched ? state.node : ops.unsqueeze(state.node, 1);
    });
  }

  override extraRepr(): string {
    const more = [
      this.numLayers > 1 ? `, numLayers=${this.numLayers}` : "",
      this.bias ? "" : ", bias=false",
      this.batchFirst ? ", batchFirst=true" : "",
      this.dropout ? `, dropout=${this.dropout}` : "",
      this.bidirectional ? ", bidirectional=true" : "",
    ];
    return `${this.inputSize}, ${this.hiddenSize}${more.join("")}`;
  }
}

export interface RNNOptions extends RecurrentOptions {
  /** Default: "tanh". */
  readonly nonlinearity?: "tanh" | "relu";
}

/**
 * h ← tanh(W_ih x + b_ih + W_hh h + b_hh) along a sequence (torch.nn.RNN, Elman 1990): [time, batch, inputSize] and, if given,
 * the first states [layers · directions, batch, hiddenSize] → [the last layer's states at all times
 * [time, batch, directions · hiddenSize], the last states of all layers]. Sequences without a batch are [time, width].
 */
export class RNN extends RecurrentBase {
  readonly #nonlinearity: "tanh" | "relu";
  constructor(inputSize: number, hiddenSize: number, options: RNNOptions = {}) {
    super("rnn", inputSize, hiddenSize, options);
    this.#nonlinearity = nonlinearityOf("RNN", options);
  }
  forward(x: Tensor, state?: Tensor | null): [output: Tensor, state: Tensor] {
    const { output, states } = this.run(x, state ? [state] : null, this.#nonlinearity);
    return [output, states[0]];
  }
}

function nonlinearityOf(layer: string, { nonlinearity = "tanh" }: RNNOptions): "tanh" | "relu" {
  if (nonlinearity !== "tanh" && nonlinearity !== "relu")
    throw new NablaError(`${layer}: nonlinearity must be "tanh" or "relu", got ${JSON.stringify(nonlinearity)}`);
  return nonlinearity;
}

/** Gated recurrent units (torch.nn.GRU; Cho et al. 2014, with the reset gate behind the product). Shapes as RNN's. */
export class GRU extends RecurrentBase {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentOptions = {}) {
    super("gru", inputSize, hiddenSize, options);
  }
  forward(x: Tensor, state?: Tensor | null): [output: Tensor, state: Tensor] {
    const { output, states } = this.run(x, state ? [state] : null);
    return [output, states[0]];
  }
}

/** Long short-term memory (torch.nn.LSTM; Hochreiter & Schmidhuber 1997). Shapes as RNN's; the state is [h, c]. */
export class LSTM extends RecurrentBase {
  constructor(inputSize: number, hiddenSize: number, options: RecurrentOptions = {}) {
    super("lstm", inputSize, hiddenSize, options);
  }
  forward(x: Tensor, state?: readonly [h: Tensor, c: Tensor] | null): [output: Tensor, state: [h: Tensor, c: Tensor]] {
    const { output, states } = this.run(x, state ?? null);
    return [output, [states[0], states[1]]];
  }
}

export interface CellOptions extends FactoryOptions {
  /** Default: true. */
  readonly bias?: boolean;
}

abstract class CellBase extends Module {
  readonly inputSize: number;
  readonly hiddenSize: number;
  /** [gates · hiddenSize, inputSize] */
  weight_ih: Parameter;
  /** [gates · hiddenSize, hiddenSize] */
  weight_hh: Parameter;
  bias_ih: Parameter | null;
  bias_hh: Parameter | null;
  readonly #cell: CellName;
  constructor(cell: CellName, inputSize: number, hiddenSize: number, options: CellOptions) {
    super();
    expectSize(this.constructor.name, "inputSize", inputSize);
    expectSize(this.constructor.name, "hiddenSize", hiddenSize);
    this.#cell = cell;
    this.inputSize = inputSize;
    this.hiddenSize = hiddenSize;
    const rows = gatesOf(cell) * hiddenSize;
    this.weight_ih = weight([rows, inputSize], hiddenSize, options);
    this.weight_hh = weight([rows, hiddenSize], hiddenSize, options);
    const bias = options.bias ?? true;
    this.bias_ih = bias ? weight([rows], hiddenSize, options) : null;
    this.bias_hh = bias ? weight([rows], hiddenSize, options) : null;
  }
  protected step(x: Tensor, given: readonly (Tensor | null | undefined)[], nonlinearity?: "tanh" | "relu"): Tensor[] {
    const name = this.constructor.name;
    const isBatched = x.ndim === 2;
    if ((!isBatched && x.ndim !== 1) || x.shape[x.ndim - 1] !== this.inputSize)
      throw new ShapeError(
        `${name}: expected [batch, ${this.inputSize}] or [${this.inputSize}], got ${showShape(x.shape)}`,
      );
    const batch = isBatched ? x.shape[0] : 1;
    const shape = isBatched ? [batch, this.hiddenSize] : [this.hiddenSize];
    const { states } = recurrent(this.#cell, {
      x: raised(ops.reshape(x.node, [1, batch, this.inputSize])),
      states: given.map((state) => {
        if (!state) return raised(ops.full([batch, this.hiddenSize], 0, x.dtype));
        if (state.shape.join() !== shape.join())
          throw new ShapeError(`${name}: a state must be ${showShape(shape)}, got ${showShape(state.shape)}`);
        return raised(ops.reshape(state.node, [batch, this.hiddenSize]));
      }),
      weights: [this.weight_ih.node, this.weight_hh.node],
      biases: this.bias_ih && this.bias_hh ? [this.bias_ih.node, this.bias_hh.node] : null,
      nonlinearity,
    });
    return states.map((state) => new Tensor(ops.reshape(state, shape)));
  }
  override extraRepr(): string {
    return `${this.inputSize}, ${this.hiddenSize}${this.bias_ih ? "" : ", bias=false"}`;
  }
}

/** One step of an RNN: [batch, inputSize] and the state [batch, hiddenSize] (default: 0) → the next state (torch.nn.RNNCell). */
export class RNNCell extends CellBase {
  readonly #nonlinearity: "tanh" | "relu";
  constructor(inputSize: number, hiddenSize: number, options: CellOptions & Pick<RNNOptions, "nonlinearity"> = {}) {
    super("rnn", inputSize, hiddenSize, options);
    this.#nonlinearity = nonlinearityOf("RNNCell", options);
  }
  forward(x: Tensor, state?: Tensor | null): Tensor {
    return this.step(x, [state], this.#nonlinearity)[0];
  }
}

/** One step of a GRU: [batch, inputSize] and the state [batch, hiddenSize] (default: 0) → the next state (torch.nn.GRUCell). */
export class GRUCell extends CellBase {
  constructor(inputSize: number, hiddenSize: number, options: CellOptions = {}) {
    super("gru", inputSize, hiddenSize, options);
  }
  forward(x: Tensor, state?: Tensor | null): Tensor {
    return this.step(x, [state])[0];
  }
}

/** One step of an LSTM: [batch, inputSize], h and c [batch, hiddenSize] (default: 0) → [h, c] (torch.nn.LSTMCell). */
export class LSTMCell extends CellBase {
  constructor(inputSize: number, hiddenSize: number, options: CellOptions = {}) {
    super("lstm", inputSize, hiddenSize, options);
  }
  /** The state as PyTorch gives it, [h, c], or as two arguments. */
  forward(
    x: Tensor,
    state?: Tensor | readonly [h: Tensor, c: Tensor] | null,
    cell?: Tensor | null,
  ): [h: Tensor, c: Tensor] {
    const [h, c] = state instanceof Tensor || !state ? [state, cell] : state;
    const [nextH, nextC] = this.step(x, [h, c]);
    return [nextH, nextC];
  }
}
