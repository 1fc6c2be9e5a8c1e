/** The smallest program there is, written by hand. */
import { CMD, PHASE, PROGRAM } from "../../../src/backends/wasm/layout.ts";
import type { Heap } from "../../../src/backends/wasm/memory.ts";

/** A program of one phase and one tile: `fn` fills 16 bytes with 9, 448 bytes from its start. Its address. */
export function oneFill(heap: Heap, fn: number): number {
  const { pointer } = heap.allocate(512);
  const words = new Int32Array(heap.memory.buffer, pointer, 128);
  const put = (at: number, value: number): void => {
    words[at >> 2] = value;
  };
  const command = PROGRAM.bytes + PHASE.bytes;
  put(PROGRAM.steps, 1);
  put(PROGRAM.at, pointer + PROGRAM.bytes);
  put(PROGRAM.bytes + PHASE.tiles, 1);
  put(PROGRAM.bytes + PHASE.commands, pointer + 400);
  put(400, pointer + command);
  put(command + CMD.fn, fn);
  put(command + CMD.rows, 16);
  put(command + CMD.grain, 16);
  put(command + CMD.buffers, pointer + 416);
  put(416, pointer + 448);
  put(command + CMD.params, pointer + 432);
  put(432, 1);
  put(436, 9);
  return pointer;
}
