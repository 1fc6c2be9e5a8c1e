/**
 * The gradient of a loop is a loop the other way: it carries the gradients of the carries, and the sums of the gradients of
 * what the body captured; it reads the carries that each step found, which the loop has saved. It is an ordinary loop, so
 * that everything can be differentiated again.
 */
import { isFloat } from "../../core/dtype.ts";
import { bodyOf, loop, loopAttrs, recordStep } from "../../graph/loop.ts";
import type { Node } from "../../graph/node.ts";
import { add, output, zerosLike } from "../../graph/ops.ts";
import { gradientsWithin } from "../backward.ts";
import { needs, type Rule, setGradients } from "../table.ts";

const range = (from: number, to: number): number[] => Array.from({ length: to - from }, (_, i) => from + i);

const loopRule: Rule = (node, grads) => {
  const a = loopAttrs(node);
  const body = bodyOf(a);
  const { inputs } = node;
  const firstCapture = a.carries + a.sequences;
  const carries = range(0, a.carries);
  const sequences = range(a.carries, firstCapture);
  const captures = inputs.slice(firstCapture);
  /** Inputs, by number: carries that gradients flow through, sequences and captures that want one. */
  const flowing = carries.filter((i) => isFloat(inputs[i].dtype));
  const read = sequences.filter((i) => needs(node, i));
  const summed = range(firstCapture, inputs.length).filter((i) => needs(node, i));
  /** Outputs of a step, by number, that a gradient comes from. */
  const given = range(0, body.outputs.length).filter((k) => grads[a.carries + k]);
  const savedAt = node.outputs!.length - a.carries;
  const result = loop(
    (flow, elements) => {
      const [found, rest] = [elements.slice(0, a.carries), elements.slice(a.carries)];
      const step = [...found, ...rest.slice(0, a.sequences), ...captures];
      const { next, outputs } = recordStep(body, step);
      const by = gradientsWithin(
        [...flowing.map((i) => next[i]), ...given.map((k) => outputs[k])],
        [...flow.slice(0, flowing.length), ...rest.slice(a.sequences)],
        step,
      );
      const sums = flow.slice(flowing.length);
      return {
        carries: [
          ...flowing.map((i) => by[i] ?? zerosLike(inputs[i])),
          ...summed.map((i, k) => (by[i] ? add(sums[k], by[i]) : sums[k])),
        ],
        outputs: read.map((i) => by[i] ?? zerosLike(step[i])),
      };
    },
    {
      carries: [...flowing.map((i) => grads[i] ?? zerosLike(inputs[i])), ...summed.map((i) => zerosLike(inputs[i]))],
      sequences: [
        ...carries.map((k) => output(node, savedAt + k)),
        ...sequences.map((i) => inputs[i]),
        ...given.map((k) => grads[a.carries + k] as Node),
      ],
      count: a.count,
      reverse: !a.reverse,
    },
  );
  const flow: (Node | null)[] = inputs.map(() => null);
  flowing.forEach((i, k) => {
    flow[i] = result.carries[k];
  });
  summed.forEach((i, k) => {
    flow[i] = result.carries[flowing.length + k];
  });
  read.forEach((i, k) => {
    flow[i] = result.outputs[k];
  });
  return flow;
};

setGradients({ placeholder: null, loop: loopRule });
