/**
 * Optimisers, learning-rate schedules and gradient clipping against torch.optim (fixtures/training.json, written by
 * generate.py), step by step, on every device present.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import type { DType, TypedArray } from "../../src/core/dtype.ts";
import { sizeOf } from "../../src/core/shape.ts";
import { setDevice } from "../../src/execution/index.ts";
import * as optim from "../../src/optim/index.ts";
import { type Tensor, tensor, zeros } from "../../src/tensor/index.ts";
import { backendsUnderTest } from "../support/backends.ts";
import { differenceOf, load } from "../support/calls.ts";
import { assertClose, readFixture, type Stored, valuesOf } from "../support/fixtures.ts";

type Options = Readonly<Record<string, unknown>>;
type ByName<T> = Readonly<Record<string, T>>;

interface Fixture {
  readonly optimizers: {
    readonly start: ByName<Stored>;
    /** [steps, …] */
    readonly gradients: ByName<Stored>;
    readonly keptSteps: readonly number[];
    /** The parameters after the kept steps, [kept, …]. */
    readonly cases: readonly { readonly name: string; readonly options: Options; readonly after: ByName<Stored> }[];
  };
  readonly schedules: {
    readonly cases: readonly {
      readonly name: string;
      readonly options: Options;
      readonly lr: number;
      readonly rates: readonly number[];
    }[];
    readonly plateau: {
      readonly options: Options;
      readonly metrics: readonly number[];
      readonly rates: readonly number[];
    };
  };
  readonly clipping: {
    readonly gradients: readonly Stored[];
    readonly byNorm: readonly {
      readonly maxNorm: number;
      readonly normType: number | "Infinity";
      readonly norm: number;
      readonly clipped: readonly Stored[];
    }[];
    readonly byValue: { readonly clipValue: number; readonly clipped: readonly Stored[] };
  };
}

const fixture = readFixture<Fixture>("training");

type AnyOptimizer = Pick<optim.SGD, "step" | "zeroGrad" | "paramGroups">;
type OptimizerClass = new (params: readonly Tensor[], options: Options) => AnyOptimizer;
type ScheduleClass = new (optimizer: AnyOptimizer, options: Options) => { step(metric?: number): void };
const classes = optim as unknown as Readonly<Record<string, unknown>>;

/** Gives every parameter the gradient of one step, through a loss whose derivative it is. */
function giveGradients(parameters: readonly Tensor[], gradients: readonly Tensor[]): void {
  parameters
    .map((p, i) => p.mul(gradients[i]).sum())
    .reduce((a, b) => a.add(b))
    .backward();
}

async function trajectory(name: string, options: Options, dtype: DType): Promise<TypedArray[][]> {
  const { start, gradients, keptSteps } = fixture.optimizers;
  const names = Object.keys(start);
  const parameters = names.map((key) => load(start[key], dtype, true));
  /** The step's gradients as data: a slice at a position of its own would be a program of its own. */
  const given = (t: number): Tensor[] =>
    names.map((key) => {
      const { shape } = start[key];
      const size = sizeOf(shape);
      return tensor(valuesOf(gradients[key]).slice((t - 1) * size, t * size), { shape, dtype });
    });
  const optimizer = new (classes[name] as OptimizerClass)(parameters, options);
  const kept: TypedArray[][] = names.map(() => []);
  for (let t = 1; t <= (keptSteps.at(-1) as number); t++) {
    optimizer.zeroGrad();
    giveGradients(parameters, given(t));
    await optimizer.step();
    if (keptSteps.includes(t)) for (let i = 0; i < names.length; i++) kept[i].push(await parameters[i].data());
  }
  return kept;
}

const tolerances = { float64: { rtol: 1e-9, atol: 1e-10 }, float32: { rtol: 1e-4, atol: 1e-5 } } as const;

for (const { name: device, dtypes } of await backendsUnderTest())
  describe(`optim on ${device} agrees with torch.optim`, () => {
    for (const { name, options, after } of fixture.optimizers.cases)
      test(`${name} ${JSON.stringify(options)} over twenty steps`, async () => {
        setDevice(device);
        for (const dtype of (["float64", "float32"] as const).filter((each) => dtypes.includes(each))) {
          const kept = await trajectory(name, options, dtype);
          Object.entries(after).forEach(([key, expected], i) => {
            const got = kept[i].flatMap((values) => [...values]);
            assertClose(`${key} in ${dtype}`, got, valuesOf(expected), tolerances[dtype]);
          });
        }
      });

    test("gradients are clipped by their common norm", async () => {
      setDevice(device);
      for (const { maxNorm, normType, norm, clipped } of fixture.clipping.byNorm) {
        const gradients = fixture.clipping.gradients.map((stored) => load(stored, "float32"));
        const parameters = gradients.map((g) => zeros(g.shape, { requiresGrad: true }));
        giveGradients(parameters, gradients);
        const found = optim.clipGradNorm_(parameters, maxNorm, { normType: Number(normType) });
        assertClose(`norm ${normType}`, [await found.item()], [norm], { rtol: 1e-5, atol: 0 });
        for (let i = 0; i < clipped.length; i++)
          assert.equal(await differenceOf(parameters[i].grad as Tensor, clipped[i], "float32"), null);
      }
    });

    test("gradients are clipped by value", async () => {
      setDevice(device);
      const gradients = fixture.clipping.gradients.map((stored) => load(stored, "float32"));
      const parameters = gradients.map((g) => zeros(g.shape, { requiresGrad: true }));
      giveGradients(parameters, gradients);
      const { clipValue, clipped } = fixture.clipping.byValue;
      optim.clipGradValue_(parameters, clipValue);
      for (let i = 0; i < clipped.length; i++)
        assert.equal(await differenceOf(parameters[i].grad as Tensor, clipped[i], "float32"), null);
    });
  });

describe("schedules agree with torch.optim.lr_scheduler", () => {
  const optimizerWith = (lr: number): AnyOptimizer => new optim.SGD([zeros([1], { requiresGrad: true })], { lr });

  for (const { name, options, lr, rates } of fixture.schedules.cases)
    test(`${name} ${JSON.stringify(options)}`, () => {
      const optimizer = optimizerWith(lr);
      const schedule = new (classes[name] as ScheduleClass)(optimizer, options);
      const got = rates.map(() => {
        const rate = optimizer.paramGroups[0].lr;
        schedule.step();
        return rate;
      });
      assertClose("learning rates", got, rates, { rtol: 1e-9, atol: 1e-12 });
    });

  test("ReduceLROnPlateau", () => {
    const { options, metrics, rates } = fixture.schedules.plateau;
    const optimizer = optimizerWith(0.2);
    const schedule = new optim.ReduceLROnPlateau(optimizer, options);
    const got = metrics.map((metric) => {
      schedule.step(metric);
      return optimizer.paramGroups[0].lr;
    });
    assertClose("learning rates", got, rates, { rtol: 1e-9, atol: 1e-12 });
  });
});
