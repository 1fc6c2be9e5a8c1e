/** Unpacking raw deflate by the browser's own means, and CRC-32 (ISO 3309; the polynomial 0xEDB88320, reflected). */

let table: Uint32Array | undefined;

function makeTable(): Uint32Array {
  const out = new Uint32Array(256);
  for (let i = 0; i < 256; i++) {
    let c = i;
    for (let bit = 0; bit < 8; bit++) c = c & 1 ? (c >>> 1) ^ 0xedb88320 : c >>> 1;
    out[i] = c;
  }
  return out;
}

export function crc32(bytes: Uint8Array, before = 0): number {
  table ??= makeTable();
  let c = ~before;
  for (let i = 0; i < bytes.length; i++) c = table[(c ^ bytes[i]) & 255] ^ (c >>> 8);
  return ~c >>> 0;
}

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
  const out = new Uint8Array(length);
  let at = 0;
  for (const piece of pieces) {
    out.set(piece, at);
    at += piece.length;
  }
  return out;
}

/** Unpacks a whole stream; rejects where it is damaged, cut, or holds more than `limit` bytes. */
export const inflateRaw = (bytes: Uint8Array, limit: number): Promise<Uint8Array> => unpack(bytes, limit, false);

/** What the first bytes of a stream unpack to; rejects where nothing can be unpacked. */
export const inflateStart = (bytes: Uint8Array): Promise<Uint8Array> => unpack(bytes, Number.MAX_SAFE_INTEGER, true);
