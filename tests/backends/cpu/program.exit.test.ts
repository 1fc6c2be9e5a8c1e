/**
 * Processes that end while the workers of the native runtime still spin, while a run is under way, or while memory is being
 * given back, end in peace. NABLA_LONG=1 tries each more often.
 */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { fileURLToPath } from "node:url";
import * as o from "../../../src/graph/ops.ts";
import { compileNodes, nodeFrom } from "../../support/evaluate.ts";
import { typescript } from "../../support/typescript.ts";
import { openCpuBackend, test } from "./with-compiler.ts";

const child = fileURLToPath(new URL("./fixtures/exit-child.ts", import.meta.url));
const times = process.env["NABLA_LONG"] === "1" ? 30 : 4;

/** How a child ended, and what it said. */
function end(how: string): Promise<{ code: number | null; signal: string | null; said: string }> {
  return new Promise((resolve, reject) => {
    const process_ = spawn(process.execPath, ["--expose-gc", ...typescript, child, how], {
      stdio: ["ignore", "pipe", "pipe"],
    });
    let said = "";
    for (const stream of [process_.stdout, process_.stderr])
      stream.on("data", (data: Buffer) => {
        said += data;
      });
    process_.on("error", reject);
    process_.on("close", (code, signal) => resolve({ code, signal, said }));
  });
}

for (const how of ["after a run", "run under way", "exit under way", "garbage"])
  test(`a process ends well: ${how}`, async () => {
    // two at a time: workers that are not on a core when the process ends are the hard case
    for (let i = 0; i < times; i += 2)
      for (const { code, signal, said } of await Promise.all([end(how), end(how)])) {
        assert.equal(signal, null, `${how}: ${signal}\n${said}`);
        assert.equal(code, 0, said);
      }
  });

test("a program that needs more temporaries leaves the memory of one that is under way alone", async () => {
  const backend = await openCpuBackend({ fuse: true });
  const chain = async (n: number) => {
    const x = nodeFrom(
      backend,
      Float64Array.from({ length: n * n }, (_, i) => (i % 7) / 100),
      [n, n],
      "float32",
    );
    let y = x;
    for (let i = 0; i < 6; i++) y = o.tanh(o.matmul(y, x));
    return (await compileNodes(backend, [y])).run;
  };
  const [small, large] = [await chain(160), await chain(320)];
  const [expected] = await small();
  for (let i = 0; i < 3; i++) {
    const larger = await chain(330 + 40 * i);
    const results = [small(), larger(), small(), large()];
    const [[first], , [second]] = await Promise.all(results);
    assert.deepEqual(first, expected);
    assert.deepEqual(second, expected);
  }
});
