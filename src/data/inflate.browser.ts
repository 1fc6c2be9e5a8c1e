/** Unpacking raw deflate by the browser's own means: for a page in the worker that decodes. */
import { elsewhere } from "./elsewhere.ts";
import { joined } from "./pieces.ts";

/** Pieces until the stream ends, or breaks off and `partial` allows it. */
async function unpack(bytes: Uint8Array, limit: number, partial: boolean): Promise<Uint8Array> {
  const blob = new Blob([bytes as Uint8Array<ArrayBuffer>]);
  const reader = blob.stream().pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  const pieces: Uint8Array[] = [];
  let length = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      pieces.push(value);
      length += value.length;
      if (length > limit) throw new RangeError(`more than ${limit} bytes`);
    }
  } catch (error) {
    await reader.cancel().catch(() => {});
    if (!partial || length === 0) throw error;
  }
  return joined(pieces);
}

/** Bytes that may be sent without the rest of the memory that they are a part of. */
const alone = (bytes: Uint8Array): Uint8Array => (bytes.length === bytes.buffer.byteLength ? bytes : bytes.slice());

/** Unpacks a whole stream; rejects where it is damaged, cut, or holds more than `limit` bytes. */
export const inflateRaw = (bytes: Uint8Array, limit: number): Promise<Uint8Array> =>
  elsewhere ? elsewhere("inflateRaw", [alone(bytes), limit], {}) : unpack(bytes, limit, false);

/** What the first bytes of a stream unpack to; rejects where nothing can be unpacked. */
export const inflateStart = (bytes: Uint8Array): Promise<Uint8Array> =>
  elsewhere ? elsewhere("inflateStart", [alone(bytes)], {}) : unpack(bytes, Number.MAX_SAFE_INTEGER, true);
