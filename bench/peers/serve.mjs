/** The conversation of the peers in JavaScript with the bench (support/protocol.ts). */
import { createInterface } from "node:readline";

const say = (answer) => process.stdout.write(`${JSON.stringify(answer)}\n`);

/** Ends the peer with the reason why it can't be measured here. */
export function absent(reason) {
  say({ absent: reason });
  process.exit(0);
}

/** Serves until the bench ends: `check` gives numbers to compare, `sample` takes one sample of a line, of `per` steps; `first` goes before a round. */
export async function serveAs(title, { check, sample, per = 1, first = () => {} }) {
  say({ ready: title });
  for await (const text of createInterface({ input: process.stdin })) {
    const request = JSON.parse(text);
    if (request.do === "check") say({ values: await check() });
    else {
      await first(request.line);
      const ms = [];
      const end = performance.now() + 1000 * request.seconds;
      for (let now = performance.now(); ms.length === 0 || now < end; ) {
        await sample(request.line);
        const after = performance.now();
        ms.push((after - now) / per);
        now = after;
      }
      say({ ms });
    }
  }
  process.exit(0);
}
