/**
 * The remote backend over a pair of message ports, its host in this process: what goes over is a copy, so this is all that
 * a worker changes but the thread. The host's backends run the same programs directly, and the results must be the same bits.
 */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { setFlagsFromString } from "node:v8";
import { runInNewContext } from "node:vm";
import type { Backend } from "../../../src/backends/backend.ts";
import { referenceBackend } from "../../../src/backends/reference/index.ts";
import { openRemoteBackend } from "../../../src/backends/remote/client.ts";
import { Host, type Openers } from "../../../src/backends/remote/host.ts";
import type { Answer, Request } from "../../../src/backends/remote/wire.ts";
import { openWasmBackend } from "../../../src/backends/wasm/index.ts";
import { BackendError } from "../../../src/core/errors.ts";
import {
  defineOperation,
  manualSeed,
  nn,
  optim,
  randn,
  registerBackend,
  setDevice,
  synchronize,
  type Tensor,
  tensor,
} from "../../../src/index.ts";

/** As a host in a worker would answer: it knows no operation of a user's own. */
const withoutOurs = (answer: Answer): Answer =>
  "value" in answer && answer.value !== null && "operations" in answer.value
    ? { ...answer, value: { ...answer.value, operations: answer.value.operations.filter((o) => !/^test\./.test(o)) } }
    : answer;

/** A backend behind ports; `lose` ends the host as a worker may end. */
async function remote(openers: Openers, name: string) {
  const { port1, port2 } = new MessageChannel();
  const host = new Host(openers, (answer, transfer) => port2.postMessage(withoutOurs(answer), transfer));
  let lost = false;
  port2.onmessage = ({ data }) => {
    if (!lost) host.handle(data as Request);
  };
  let tell: (reason: string) => void = () => {};
  const backend = openRemoteBackend(
    {
      send: (request, transfer) => port1.postMessage(request, transfer),
      listen: (answer, told) => {
        port1.onmessage = ({ data }) => answer(data as Answer);
        tell = told;
      },
    },
    name,
  );
  const close = (): void => {
    port1.close();
    port2.close();
  };
  const lose = (reason: string): void => {
    lost = true;
    tell(reason);
  };
  try {
    return { backend: await backend, close, lose };
  } catch (error) {
    close();
    throw error;
  }
}

/** An operation that only this side knows, with two outputs: the host's answer below leaves it out. */
const twice = defineOperation({ name: "test.remote.twice", forward: ([x]) => [x.add(x), x.mul(x)] });

class Net extends nn.Module {
  lstm = new nn.LSTM(3, 5, { batchFirst: true });
  head = new nn.Linear(5, 4);
  forward(x: Tensor): Tensor {
    const [y, z] = twice<readonly Tensor[]>([this.head.forward(this.lstm.forward(x)[0]).relu()]);
    return y.sub(z.mul(0.5));
  }
}

/** The losses of ten steps, and the weights after them. */
async function trained(device: string): Promise<number[]> {
  setDevice(device);
  manualSeed(3);
  const net = new Net();
  const optimizer = new optim.AdamW(net.parameters(), { lr: 0.01 });
  const x = randn([6, 7, 3]);
  const out: number[] = [];
  for (let i = 0; i < 10; i++) {
    const loss = net.forward(x).sub(1).pow(2).mean();
    loss.backward();
    await optimizer.step();
    optimizer.zeroGrad();
    out.push(await loss.item());
  }
  for (const p of net.parameters()) out.push(...((await p.data()) as Float32Array));
  return out;
}

for (const [name, open] of [
  ["reference", referenceBackend],
  ["wasm", openWasmBackend],
] as const)
  test(`a network trained through messages on ${name} gets the same bits as without them`, async () => {
    const { backend, close } = await remote({ [name]: open }, name);
    registerBackend(`remote-${name}`, () => backend);
    try {
      const there = await trained(`remote-${name}`);
      assert.deepEqual(there, await trained(name));
      assert.ok(there[9] < there[0], `the loss falls: ${there.slice(0, 10)}`);
    } finally {
      close();
    }
  });

describe("what goes wrong behind the messages", () => {
  test("a backend that does not open there gives its reason", async () => {
    const fails = async (): Promise<Backend> => {
      throw new BackendError("there is no adapter on Sundays");
    };
    await assert.rejects(remote({ webgpu: fails }, "webgpu"), {
      name: "BackendError",
      message: "there is no adapter on Sundays",
    });
    await assert.rejects(remote({}, "wasm"), /the worker has no backend "wasm"/);
  });

  test("an index out of range is an IndexError, and states are as before", async () => {
    const { backend, close } = await remote({ reference: referenceBackend }, "reference");
    registerBackend("remote-index", () => backend);
    setDevice("remote-index");
    try {
      const table = new nn.Embedding(4, 2);
      const before = await table.weight.data();
      const optimizer = new optim.SGD(table.parameters(), { lr: 1 });
      table
        .forward(tensor([1, 9], { dtype: "int32" }))
        .sum()
        .backward();
      await optimizer.step();
      await assert.rejects(synchronize(), { name: "IndexError", message: /\b9\b/ });
      assert.deepEqual(await table.weight.data(), before);
    } finally {
      close();
    }
  });

  test("memory that could not be had is told of to whoever uses it", async () => {
    const full = async (): Promise<Backend> => ({
      ...referenceBackend(),
      allocate: (bytes) => {
        throw new BackendError(`out of memory: ${bytes} bytes were asked for`);
      },
    });
    const { backend, close } = await remote({ full }, "full");
    registerBackend("remote-full", () => backend);
    try {
      await assert.rejects(tensor([1, 2, 3], { device: "remote-full" }).add(1).data(), /out of memory: 12 bytes/);
    } finally {
      close();
    }
  });

  test("with the worker goes everything that waits for it, and what is asked later", async () => {
    const never = async (): Promise<Backend> => ({ ...referenceBackend(), compile: () => new Promise(() => {}) });
    const { backend, close, lose } = await remote({ never }, "never");
    registerBackend("remote-lost", () => backend);
    try {
      const x = tensor([1, 2, 3], { device: "remote-lost" });
      const waiting = x.add(1).data();
      setImmediate(() => lose("it ran out of memory"));
      const lost = {
        name: "BackendError",
        message: /was lost \(it ran out of memory\).*go on from the last checkpoint/,
      };
      await assert.rejects(waiting, lost);
      await assert.rejects(x.mul(2).data(), lost);
      assert.throws(() => backend.allocate(8), lost);
    } finally {
      close();
    }
  });
});

test("memory that nobody holds any more is freed there", async () => {
  setFlagsFromString("--expose-gc");
  const gc = runInNewContext("gc") as () => void;
  let held = 0;
  const freed = new FinalizationRegistry<number>((bytes) => {
    held -= bytes;
  });
  const counting = async (): Promise<Backend> => {
    const inner = referenceBackend();
    return {
      ...inner,
      allocate: (bytes) => {
        const memory = inner.allocate(bytes) as object;
        held += bytes;
        freed.register(memory, bytes);
        return memory;
      },
    };
  };
  const { backend, close } = await remote({ counting }, "counting");
  registerBackend("remote-counting", () => backend);
  try {
    for (let i = 0; i < 100; i++) await tensor(new Float32Array(1000), { device: "remote-counting" }).add(1).data();
    assert.ok(held >= 800_000, `${held} bytes were given out`);
    for (let i = 0; i < 50 && held > 100_000; i++) {
      gc();
      await new Promise((resolve) => setTimeout(resolve, 10));
    }
    assert.ok(held <= 100_000, `${held} bytes are still held`);
  } finally {
    close();
  }
});
