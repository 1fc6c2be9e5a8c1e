/** Devices: which one is the default, moving between them, and what is said when one is not there. */
import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { describe, it } from "node:test";
import { promisify } from "node:util";
import { BackendError, IndexError } from "../../src/core/errors.ts";
import { deviceNames, flush, registerBackend, setDevice } from "../../src/execution/index.ts";
import { asState, randn, realize, tensor, zeros } from "../../src/tensor/index.ts";
import "./backends.ts";
import { typescript } from "../support/typescript.ts";

const run = promisify(execFile);
const source = new URL("../../src/tensor/index.ts", import.meta.url).href;
const execution = new URL("../../src/execution/index.ts", import.meta.url).href;

/** Runs a script in a process of its own. */
const child = (script: string, env: Record<string, string> = {}): Promise<{ stdout: string; stderr: string }> =>
  run(process.execPath, [...typescript, "--input-type=module", "-e", script], {
    env: { ...process.env, ...env },
    cwd: new URL("../..", import.meta.url),
  });

describe("devices", () => {
  it("new tensors live on the default device, named ones where they are told", async () => {
    setDevice("reference");
    assert.equal(zeros([1]).device, "reference");
    const x = randn([2], { device: "late" });
    assert.equal(x.device, "late");
    assert.equal(x.mul(2).add(zeros([2])).device, "late");
    assert.ok(deviceNames().includes("cpu"));
  });

  it("NABLA_DEVICE chooses it, and a wrong name is told with the known ones", async () => {
    const script = `import { tensor } from ${JSON.stringify(source)}; const x = tensor([1]).add(1); console.log(x.device, await x.item());`;
    assert.equal((await child(script, { NABLA_DEVICE: "reference" })).stdout, "reference 2\n");
    await assert.rejects(
      child(script, { NABLA_DEVICE: "abacus" }),
      /there is no device "abacus"; known are reference, wasm, webgpu, cpu/,
    );
  });

  it("a backend that does not open says why to whoever asked for it", async () => {
    registerBackend("broken", async () => {
      throw new BackendError("no such card");
    });
    await assert.rejects(tensor([1], { device: "broken" }).add(1).data(), /no such card/);
    const script = `
      import { registerBackend } from ${JSON.stringify(execution)};
      import { tensor } from ${JSON.stringify(source)};
      registerBackend("broken", () => { throw new Error("no such card"); });
      try { await tensor([1], { device: "broken" }).add(1).data(); } catch (e) { console.log(e.message); }`;
    assert.equal((await child(script, { NABLA_DEVICE: "reference" })).stdout, "no such card\n");
  });

  it("values move between devices, what is not computed yet too", async () => {
    const x = tensor([1, 2], { device: "late" }).mul(3);
    const y = x.to("reference").add(1);
    assert.equal(y.device, "reference");
    assert.deepEqual(Array.from(await y.data()), [4, 7]);
    const s = asState(tensor([1, 2], { device: "reference" }));
    const moved = s.to("late");
    s.add_(10);
    await flush("reference");
    assert.deepEqual(Array.from(await moved.data()), [1, 2], "the value when it was moved");
    const index = tensor([5], { device: "late", dtype: "int32" });
    await assert.rejects(tensor([1], { device: "late" }).at(index).to("reference").add(1).data(), IndexError);
  });

  it("mixing devices is refused where it is recorded", () => {
    const [a, b] = [tensor([1], { device: "late" }), tensor([1], { device: "reference" })];
    assert.throws(
      () => a.add(b),
      /inputs live on different devices \(late and reference\); move one with \.to\("late"\)/,
    );
  });

  it("realize computes tensors of several devices", async () => {
    const [a, b] = [tensor([1], { device: "late" }).add(1), tensor([1], { device: "reference" }).add(2)];
    await realize(a, b);
    assert.ok(a.node.storage && b.node.storage);
  });

  it("NABLA_DEBUG=1 prints a line for every program and every run", async () => {
    const script = `import { tensor } from ${JSON.stringify(source)}; await tensor([1]).add(1).data();`;
    const { stderr } = await child(script, { NABLA_DEVICE: "reference", NABLA_DEBUG: "1" });
    assert.match(stderr, /nabla: reference program 1: \d+ kernels, .*FLOP, .*B moved, .*compiled in [\d.]+ ms/);
    assert.match(stderr, /nabla: reference program 1: ran in [\d.]+ ms, .*FLOP\/s/);
  });
});
