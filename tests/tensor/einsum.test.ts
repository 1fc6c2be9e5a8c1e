/** einsum against a loop over all labels: random equations with repeated labels, broadcasting "..." and implicit outputs. */
import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { contiguousStrides, sizeOf } from "../../src/core/shape.ts";
import { setDevice } from "../../src/execution/index.ts";
import { arange, einsum, ones, randn, type Tensor, tensor, tensordot, zeros } from "../../src/tensor/index.ts";
import { stream } from "../execution/programs.ts";

setDevice("reference");

/** Σ over every label that the output does not name, by brute force. Labels are single characters; no "...". */
function brute(
  inputs: readonly string[],
  output: string,
  shapes: readonly number[][],
  data: readonly number[][],
): { shape: number[]; values: number[] } {
  const labels = [...new Set(inputs.join(""))];
  const sizes = labels.map((l) =>
    Math.max(...inputs.flatMap((t, i) => [...t].map((c, k) => (c === l ? shapes[i][k] : 1)))),
  );
  const shape = [...output].map((l) => sizes[labels.indexOf(l)]);
  const values = new Array<number>(sizeOf(shape)).fill(0);
  const outStrides = contiguousStrides(shape);
  const total = sizeOf(sizes);
  const strides = contiguousStrides(sizes);
  for (let n = 0; n < total; n++) {
    const at = (l: string): number => Math.floor(n / strides[labels.indexOf(l)]) % sizes[labels.indexOf(l)];
    let product = 1;
    inputs.forEach((term, i) => {
      const own = contiguousStrides(shapes[i]);
      product *= data[i][[...term].reduce((p, l, k) => p + (shapes[i][k] === 1 ? 0 : at(l)) * own[k], 0)];
    });
    values[[...output].reduce((p, l, k) => p + at(l) * outStrides[k], 0)] += product;
  }
  return { shape, values };
}

const seed = Number(process.env["NABLA_SEED"] ?? 11);

describe("einsum", () => {
  it("equals a loop over all labels on 200 random equations", async () => {
    const random = stream(seed);
    const int = (n: number): number => Math.floor(random() * n);
    for (let k = 0; k < 200; k++) {
      const alphabet = "abcde".slice(0, 2 + int(4));
      const sizes = new Map([...alphabet].map((l) => [l, 1 + int(3)]));
      const count = 1 + int(3);
      const inputs = Array.from({ length: count }, () =>
        Array.from({ length: int(4) }, () => alphabet[int(alphabet.length)]).join(""),
      );
      const known = [...new Set(inputs.join(""))];
      const output = known
        .filter(() => random() < 0.5)
        .sort(() => random() - 0.5)
        .join("");
      const shapes = inputs.map((t) => [...t].map((l) => sizes.get(l) as number));
      const data = shapes.map((s) => Array.from({ length: sizeOf(s) }, () => int(7) - 3));
      const expected = brute(inputs, output, shapes, data);
      const tensors = shapes.map((shape, i) => tensor(Float32Array.from(data[i]), { shape }));
      const equation = `${inputs.join(",")}->${output}`;
      const got = einsum(equation, ...tensors);
      assert.deepEqual([...got.shape], expected.shape, `seed ${seed}, case ${k}: ${equation}`);
      assert.deepEqual(
        Array.from(await got.data(), (v) => v + 0), // −0 is 0 here
        expected.values.map((v) => v + 0),
        `seed ${seed}, case ${k}: ${equation}`,
      );
    }
  });

  const same = async (a: Tensor, b: Tensor): Promise<void> => {
    assert.deepEqual([...a.shape], [...b.shape]);
    assert.deepEqual(Array.from(await a.data()), Array.from(await b.data()));
  };
  const [x, y] = [arange(24).float().reshape(2, 3, 4), arange(12).float().reshape(1, 4, 3)];

  it('"..." stands for any axes, aligned on the right, and broadcasts', async () => {
    await same(einsum("...ij,...jk->...ik", x, y), x.matmul(y));
    await same(einsum("...ij,jk", x, y.at(0)), x.matmul(y.at(0)));
    await same(einsum("i...->...i", x), x.permute(1, 2, 0));
    await same(einsum("...->", x), x.sum());
  });
  it('without "->" the labels that occur once are the output, sorted', async () => {
    await same(einsum("ba", x.at(0)), x.at(0).t());
    await same(einsum("ij,jk", x.at(0), y.at(0)), x.at(0).matmul(y.at(0)));
    await same(einsum("ii", y.at(0).at([0, 1, 2])), y.at(0).at([0, 1, 2]).trace());
  });
  it("has the gradients of the products that it stands for", async () => {
    const a = randn([3, 4], { requiresGrad: true });
    const b = randn([3, 4], { requiresGrad: true });
    einsum("ij,ij->i", a, b).sum().backward();
    await same(a.grad as Tensor, b.detach());
    await same(b.grad as Tensor, a.detach());
  });
  it("refuses what does not fit, naming the label", () => {
    assert.throws(() => einsum("ij,jk->ik", zeros([2, 3]), zeros([4, 5])), /label j of .* has sizes 3 and 4/);
    assert.throws(() => einsum("ij->ik", zeros([2, 3])), /names k, which no operand has/);
    assert.throws(() => einsum("ijk->i", zeros([2, 3])), /does not fit operand 0/);
    assert.throws(() => einsum("ij->i"), /names 1 operands, 0 were given/);
    assert.throws(() => einsum("ii->i", zeros([2, 3])), /has sizes 2 and 3/);
  });
  it("tensordot sums the axes named", async () => {
    await same(tensordot(x, y.at(0), 1), x.matmul(y.at(0)));
    await same(
      tensordot(x, ones([2, 3]), [
        [0, 1],
        [0, 1],
      ]),
      x.sum([0, 1]),
    );
  });
});
