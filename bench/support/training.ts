/** Training steps as a user writes them, served as a benchmark: `steps` of them a sample, whose last loss is read. */
import { getDevice, type nn, type optim, type Tensor } from "../../src/index.ts";
import type { Served } from "./protocol.ts";

export interface Training {
  readonly model: nn.Module;
  readonly optimizer: optim.Optimizer<never> | { step(): Promise<unknown>; zeroGrad(): void };
  /** The loss of step i; batches are made once and come again. */
  loss(i: number): Tensor;
  /** Steps a sample. */
  readonly steps: number;
  /** Steps whose losses are compared. Default: 6. */
  readonly checked?: number;
}

export function serveTraining({ optimizer, loss, steps, checked = 6 }: Training): Served {
  let i = 0;
  const step = async (): Promise<Tensor> => {
    const value = loss(i++);
    value.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    return value;
  };
  return {
    title: `Nabla, ${getDevice()}`,
    check: async () => {
      const losses: number[] = [];
      for (let k = 0; k < checked; k++) losses.push(await (await step()).item());
      return losses;
    },
    lines: [
      {
        name: "step",
        per: steps,
        run: async () => {
          let last: Tensor | undefined;
          for (let k = 0; k < steps; k++) last = await step();
          return (last as Tensor).item();
        },
      },
    ],
  };
}
