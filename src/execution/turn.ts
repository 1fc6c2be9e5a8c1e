/**
 * Turns of the event loop. Where a backend answers at once, a training loop would never leave JavaScript's microtasks: timers,
 * signals and other work would starve, and memory whose owners are gone would not be freed. So whoever awaits steps or values
 * is made to wait for a turn now and then. It decides nothing else.
 */

/** A loop that has gone on for so many milliseconds lets others have a turn. */
const longest = 20;

let last = 0;

/** Nothing, or where the last turn was long ago, a promise of the next one. */
export function turn(): Promise<void> | undefined {
  const now = performance.now();
  if (now - last < longest) return undefined;
  last = now;
  return new Promise((resolve) => {
    if (typeof setImmediate === "function") setImmediate(resolve);
    else setTimeout(resolve, 0);
  });
}
