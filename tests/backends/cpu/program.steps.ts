/**
 * Training steps recorded with the graph's builders, of small odd sizes: a two-layer GPT with AdamW, and a convolutional
 * network with batch normalisation and momentum. What the tests of whole programs run. Not a test.
 */
import { gradientsOf, withGrad } from "../../../src/autograd/index.ts";
import type { Backend } from "../../../src/backends/backend.ts";
import { type Shape, sizeOf } from "../../../src/core/shape.ts";
import * as composites from "../../../src/graph/composites/index.ts";
import type { Node } from "../../../src/graph/node.ts";
import * as o from "../../../src/graph/ops.ts";
import { type Assign, nodeFrom } from "../../support/evaluate.ts";
import { random } from "./native.harness.ts";

export interface TrainingStep {
  readonly roots: readonly Node[];
  readonly assigns: readonly Assign[];
  /** Every state by name. */
  readonly states: ReadonlyMap<string, Node>;
  /** Labels, one an example (int32 [n], below `classes`). */
  readonly labels: Node;
  readonly classes: number;
}

class Model {
  readonly backend: Backend;
  readonly states = new Map<string, Node>();
  readonly trained: string[] = [];
  private readonly next: () => number;

  constructor(backend: Backend, seed: number) {
    this.backend = backend;
    this.next = random(seed);
  }

  values(shape: Shape, scale: number, centre = 0): Float64Array {
    return Float64Array.from({ length: sizeOf(shape) }, () => Math.fround(centre + scale * (this.next() * 2 - 1)));
  }

  weight(name: string, shape: Shape, scale = 1 / Math.sqrt(shape[0]), centre = 0): Node {
    const node = this.state(name, shape, scale, centre);
    node.requiresGrad = true;
    this.trained.push(name);
    return node;
  }

  state(name: string, shape: Shape, scale = 0, centre = 0): Node {
    const node = nodeFrom(this.backend, this.values(shape, scale, centre), shape, "float32");
    this.states.set(name, node);
    return node;
  }

  integers(shape: Shape, below: number): Node {
    const values = Int32Array.from({ length: sizeOf(shape) }, () => Math.floor(this.next() * below));
    return nodeFrom(this.backend, values, shape, "int32");
  }

  linear(x: Node, name: string, size: number): Node {
    const width = x.shape[x.shape.length - 1];
    const weight = this.weight(`${name}.weight`, [width, size]);
    return o.add(o.matmul(x, weight), this.weight(`${name}.bias`, [size], 0.1));
  }

  /** A new value for every trained weight, by the rule. */
  update(loss: Node, rule: (name: string, w: Node, g: Node) => Assign[]): Assign[] {
    const weights = this.trained.map((name) => this.states.get(name) as Node);
    const gradients = gradientsOf([loss], [null], weights) as Node[];
    return withGrad(false, () => this.trained.flatMap((name, i) => rule(name, weights[i], gradients[i])));
  }
}

/** Two layers, three heads; the loss is the root, weights and moments are states. */
export function gptStep(backend: Backend): TrainingStep {
  const m = new Model(backend, 11);
  const [batch, time, heads, width, vocabulary] = [3, 21, 3, 48, 70];
  const norm = (x: Node, name: string): Node =>
    composites.layerNorm(x, 1, m.weight(`${name}.weight`, [width], 0.1, 1), m.weight(`${name}.bias`, [width], 0.1));
  const split = (x: Node): Node => o.permute(o.reshape(x, [batch, time, heads, width / heads]), [0, 2, 1, 3]);
  const tokens = m.integers([batch, time], vocabulary);
  const labels = m.integers([batch * time], vocabulary);
  const embedding = m.weight("wte", [vocabulary, width], 0.3);
  let x = o.add(o.take(embedding, 0, tokens), m.weight("wpe", [time, width], 0.1));
  for (let i = 0; i < 2; i++) {
    const qkv = m.linear(norm(x, `ln1.${i}`), `attn.${i}`, 3 * width);
    const [q, k, v] = [0, 1, 2].map((part) => split(o.narrow(qkv, 2, part * width, width)));
    const { out } = composites.attention(q, k, v, { causal: true });
    x = o.add(x, m.linear(o.reshape(out, [batch, time, width]), `proj.${i}`, width));
    x = o.add(x, m.linear(composites.gelu(m.linear(norm(x, `ln2.${i}`), `fc.${i}`, 4 * width)), `out.${i}`, width));
  }
  const logits = o.matmul(norm(x, "ln"), o.transpose(embedding, 0, 1));
  const loss = composites.crossEntropy(o.reshape(logits, [batch * time, vocabulary]), labels);
  const assigns = m.update(loss, (name, w, g) => {
    const [first, second] = [m.state(`${name}.m`, w.shape), m.state(`${name}.v`, w.shape)];
    const nextFirst = o.add(o.mul(first, 0.9), o.mul(g, 0.1));
    const nextSecond = o.add(o.mul(second, 0.99), o.mul(o.mul(g, g), 0.01));
    const step = o.mul(o.div(nextFirst, o.add(o.sqrt(nextSecond), 1e-6)), 1e-2);
    return [
      { target: w, value: o.sub(o.mul(w, 0.999), step) },
      { target: first, value: nextFirst },
      { target: second, value: nextSecond },
    ];
  });
  return { roots: [loss, logits], assigns, states: m.states, labels, classes: vocabulary };
}

/** Two convolutions with batch normalisation, whose running statistics the forward part writes. Channels last. */
export function convStep(backend: Backend): TrainingStep {
  const m = new Model(backend, 12);
  const [batch, size, classes] = [5, 13, 10];
  const labels = m.integers([batch], classes);
  const running: Assign[] = [];
  const block = (x: Node, name: string, channels: number, stride: number): Node => {
    const weight = m.weight(`${name}.weight`, [channels, x.shape[3], 3, 3], 0.3);
    const y = composites.conv(x, weight, {
      stride: [stride, stride],
      low: [1, 1],
      high: [1, 1],
      dilation: [1, 1],
      groups: 1,
    });
    const scale = m.weight(`${name}.scale`, [channels], 0.1, 1);
    const { y: out, mean, variance } = composites.batchNorm(y, scale, m.weight(`${name}.shift`, [channels], 0.1), 3);
    withGrad(false, () => {
      for (const [what, value] of [
        ["mean", mean],
        ["variance", variance],
      ] as const) {
        const state = m.state(`${name}.running.${what}`, [channels], 0.1, 1);
        running.push({ target: state, value: o.add(o.mul(state, 0.9), o.mul(value, 0.1)) });
      }
    });
    return o.maximum(out, 0);
  };
  let x = nodeFrom(backend, m.values([batch, size, size, 3], 1), [batch, size, size, 3], "float32");
  x = block(x, "conv1", 17, 1);
  x = composites.maxPool2d(x, {
    kernel: [2, 2],
    stride: [2, 2],
    low: [0, 0],
    high: [0, 0],
    dilation: [1, 1],
    ceilMode: false,
  });
  x = block(x, "conv2", 24, 2);
  const logits = m.linear(o.mean(x, [1, 2]), "head", classes);
  const loss = composites.crossEntropy(logits, labels);
  const assigns = m.update(loss, (name, w, g) => {
    const momentum = m.state(`${name}.momentum`, w.shape);
    const next = o.add(o.mul(momentum, 0.9), g);
    return [
      { target: w, value: o.sub(w, o.mul(next, 0.05)) },
      { target: momentum, value: next },
    ];
  });
  return { roots: [loss, logits], assigns: [...running, ...assigns], states: m.states, labels, classes };
}
