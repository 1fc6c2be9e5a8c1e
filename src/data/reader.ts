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

/** Reads of bytes in memory. */
export function bytesReader(bytes: Uint8Array, name: string): Reader {
  let at = 0;
  return {
    name,
    size: bytes.length,
    expected: bytes.length,
    read: async (out) => {
      const part = bytes.subarray(at, at + out.length);
      out.set(part);
      at += part.length;
      return part.length;
    },
    close: async () => {},
  };
}

/** Reads a blob in slices, so that it need not be in memory as a whole. What a browser says where it can't is thrown as it is. */
export function blobReader(blob: Blob, name: string): Reader {
  let at = 0;
  return {
    name,
    size: blob.size,
    expected: blob.size,
    read: async (out) => {
      const part = new Uint8Array(await blob.slice(at, at + out.length).arrayBuffer());
      out.set(part);
      at += part.length;
      return part.length;
    },
    close: async () => {},
  };
}
