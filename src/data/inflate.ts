/** Unpacking raw deflate. In a browser's build `inflate.browser.ts` is in the place of this file. */
import { promisify } from "node:util";
import { constants, inflateRaw as inflateRawCallback } from "node:zlib";

const inflate = promisify(inflateRawCallback) as (
  bytes: Uint8Array,
  options: { maxOutputLength?: number; finishFlush?: number },
) => Promise<Uint8Array>;

/** The bytes as a plain array, not as Node's Buffer. */
async function unpack(bytes: Uint8Array, options: Parameters<typeof inflate>[1]): Promise<Uint8Array> {
  const out = await inflate(bytes, options);
  return new Uint8Array(out.buffer, out.byteOffset, out.byteLength);
}

/** Unpacks a whole stream; rejects where it is damaged, cut, or holds more than `limit` bytes. */
export const inflateRaw = (bytes: Uint8Array, limit: number): Promise<Uint8Array> =>
  unpack(bytes, { maxOutputLength: Math.max(limit, 1) });

/** What the first bytes of a stream unpack to; rejects where they are damaged. */
export const inflateStart = (bytes: Uint8Array): Promise<Uint8Array> =>
  unpack(bytes, { finishFlush: constants.Z_SYNC_FLUSH });
