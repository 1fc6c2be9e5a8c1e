/** Anomaly detection: the first operation that made a NaN or an infinity is named, and nothing is written. */
import assert from "node:assert/strict";
import { afterEach, beforeEach, describe, it } from "node:test";
import { AnomalyError } from "../../src/core/errors.ts";
import { flush, setDetectAnomaly, setDevice } from "../../src/execution/index.ts";
import { asState, tensor } from "../../src/tensor/index.ts";
import "./backends.ts";

for (const device of ["reference", "late"])
  describe(`anomaly detection on ${device}`, () => {
    beforeEach(() => {
      setDevice(device);
      setDetectAnomaly(true);
    });
    afterEach(() => {
      setDetectAnomaly(false);
    });

    it("names the operation that gave the first NaN, where, and from what", async () => {
      const x = tensor([1, -4, 9]);
      await assert.rejects(x.sqrt().mul(2).sum().data(), (error: Error) => {
        assert.ok(error instanceof AnomalyError);
        assert.match(
          error.message,
          /the first operation to give it is sqrt → float32\[3\], at \[1\], from float32\[3\] in -4 … 9/,
        );
        return true;
      });
    });

    it("finds an infinity, and one that was already in the data", async () => {
      await assert.rejects(tensor([1, 0]).log().exp().log().data(), /Infinity at \[1\].*is log/);
      const w = asState(tensor([Number.NaN]));
      w.name = "bias";
      await assert.rejects(w.mul(2).data(), /already in a value that this step reads "bias"/);
    });

    it("does not write state from a step that gave NaN, and does from one that did not", async () => {
      const w = asState(tensor([4]));
      const step = (by: number): void => void w.copy_(w.sub(by).sqrt());
      step(5);
      await assert.rejects(async () => flush(device), AnomalyError);
      assert.deepEqual(Array.from(await w.data()), [4]);
      step(0);
      await flush(device);
      assert.deepEqual(Array.from(await w.data()), [2]);
    });

    it("lets infinities that are meant pass on the way", async () => {
      const masked = tensor([1, 2]).maskedFill(tensor([true, false]), Number.NEGATIVE_INFINITY);
      assert.deepEqual(Array.from(await masked.softmax(0).data()), [0, 1]);
    });
  });
