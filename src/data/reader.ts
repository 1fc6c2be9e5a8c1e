/**
 * Reading in order, whatever it is that is read: the one thing that the formats ask of a source. Which sources there are
 * is `source.ts`, how a path is opened `files.ts`.
 */

export interface Reader {
  /** For messages. */
  readonly name: string;
  /** In bytes; null where it shows only at the end. */
  readonly size: number | null;
  /** What a progress is measured against: the size, or what a server claims of it. */
  readonly expected: number | null;
  /** Reads on into `out`, at least a byte of it; gives how many bytes were read, 0 at the end. */
  read(out: Uint8Array): Promise<number>;
  close(): Promise<void>;
}

/** Reads on through something of a known size, of which `part` gives any bytes. */
function inOrder(
  name: string,
  size: number,
  part: (from: number, to: number) => Uint8Array | Promise<Uint8Array>,
): Reader {
  let at = 0;
  return {
    name,
    size,
    expected: size,
    read: async (out) => {
      const bytes = await part(at, at + out.length);
      out.set(bytes);
      at += bytes.length;
      return bytes.length;
    },
    close: async () => {},
  };
}

/** Reads of bytes in memory. */
export const bytesReader = (bytes: Uint8Array, name: string): Reader =>
  inOrder(name, bytes.length, (from, to) => bytes.subarray(from, to));

/** Reads a blob in slices, so that it need not be in memory as a whole. What a browser says where it can't is thrown as it is. */
export const blobReader = (blob: Blob, name: string): Reader =>
  inOrder(name, blob.size, async (from, to) => new Uint8Array(await blob.slice(from, to).arrayBuffer()));
