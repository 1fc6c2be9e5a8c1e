/** State dicts as files: what is saved comes back to the bit, in every dtype, into a model of the same shape. */
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, test } from "node:test";
import { setDevice } from "../../src/execution/index.ts";
import { load, readSafetensors, save, writeSafetensors } from "../../src/formats/index.ts";
import * as nn from "../../src/nn/index.ts";
import { randn, type Tensor, tensor } from "../../src/tensor/index.ts";

setDevice("reference");
const folder = mkdtempSync(join(tmpdir(), "nabla-tensors-"));
after(() => rmSync(folder, { recursive: true }));

test("every dtype comes back to the bit, with its shape", async () => {
  const path = join(folder, "dtypes.safetensors");
  const tensors: Record<string, Tensor> = { scalar: tensor(7), empty: tensor([]), mask: tensor([true, false]) };
  for (const dtype of ["float32", "float64", "float16", "bfloat16"] as const) tensors[dtype] = randn([2, 3], { dtype });
  for (const dtype of ["int32", "uint8"] as const) tensors[dtype] = tensor([[1], [200]], { dtype });
  await save(tensors, path);
  const back = await load(path);
  assert.deepEqual(Object.keys(back).sort(), Object.keys(tensors).sort());
  for (const [name, x] of Object.entries(tensors)) {
    assert.equal(back[name].dtype, x.dtype, name);
    assert.deepEqual(back[name].shape, x.shape, name);
    assert.deepEqual(await back[name].raw(), await x.raw(), name);
  }
});

test("a model saves and loads, tied weights are written once", async () => {
  class Tied extends nn.Module {
    embed = new nn.Embedding(5, 3);
    norm = new nn.BatchNorm1d(3);
    head = new nn.Linear(3, 5, { bias: false });
    constructor() {
      super();
      this.head.weight = this.embed.weight;
    }
    forward(ids: Tensor): Tensor {
      return this.head.forward(this.norm.forward(this.embed.forward(ids)));
    }
  }
  const path = join(folder, "model.safetensors");
  const [a, b] = [new Tied(), new Tied()];
  const ids = tensor([0, 4, 2], { dtype: "int32" });
  a.forward(ids);
  await save(a, path);
  assert.equal((await readSafetensors(path)).tensors.has("head.weight"), false);
  assert.deepEqual(b.loadStateDict(await load(path), { assign: true }), { missingKeys: [], unexpectedKeys: [] });
  assert.equal(b.head.weight, b.embed.weight);
  assert.deepEqual(await b.eval().forward(ids).data(), await a.eval().forward(ids).data());
});

test("int64 comes as int32, checked; what tensors can't hold is named", async () => {
  const path = join(folder, "wide.safetensors");
  const write = (values: bigint[]): Promise<void> =>
    writeSafetensors(path, {
      ids: { dtype: "I64", shape: [values.length], bytes: new Uint8Array(new BigInt64Array(values).buffer) },
    });
  await write([-5n, 2147483647n]);
  assert.deepEqual(await (await load(path))["ids"].tolist(), [-5, 2147483647]);
  await write([2147483648n]);
  await assert.rejects(load(path), /"ids" holds 2147483648, which does not fit int32/);
  await writeSafetensors(path, { x: { dtype: "I16", shape: [1], bytes: new Uint8Array(2) } });
  await assert.rejects(load(path), /"x" is of I16, which tensors here can't hold/);
});
