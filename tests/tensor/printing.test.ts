/** A tensor prints as PyTorch prints it (the texts in fixtures/printing.json are PyTorch's), and shows itself to the debugger. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { inspect } from "node:util";
import type { DType } from "../../src/core/dtype.ts";
import { setDevice } from "../../src/execution/index.ts";
import { ones, Tensor, tensor } from "../../src/tensor/index.ts";

setDevice("reference");

interface Case {
  readonly name: string;
  readonly dtype: DType;
  readonly shape: readonly number[];
  readonly data: readonly (number | string)[];
  readonly text: string;
}

const cases = JSON.parse(readFileSync(new URL("fixtures/printing.json", import.meta.url), "utf8")) as Case[];
const numberOf = (v: number | string): number =>
  typeof v === "number"
    ? v
    : v === "nan"
      ? Number.NaN
      : v === "inf"
        ? Number.POSITIVE_INFINITY
        : Number.NEGATIVE_INFINITY;

describe("a tensor prints as PyTorch prints it", () => {
  for (const { name, dtype, shape, data, text } of cases)
    it(name, async () => {
      const x = tensor(Float64Array.from(data, numberOf), { dtype, shape });
      assert.equal(await x.format(), text);
    });

  it("a leaf that requires a gradient says so", async () => {
    const x = tensor([1, 2], { requiresGrad: true });
    assert.equal(await x.format(), "tensor([1., 2.], requiresGrad=true)");
  });
});

describe("String(x) and the debugger", () => {
  it("show dtype, shape and device of what is not computed yet, and then the values", async () => {
    const x = tensor([[1, 2]]).add(1);
    assert.equal(String(x), "Tensor float32[1, 2] on reference");
    await x.data();
    assert.equal(String(x), "Tensor float32[1, 2] on reference: tensor([[2., 3.]])");
    assert.equal(inspect(x), String(x));
  });
  it("do not compute anything", () => {
    const x = ones([2, 2]).mul(3);
    inspect(x);
    assert.equal(x.node.storage, null);
    assert.ok(x instanceof Tensor);
  });
});
