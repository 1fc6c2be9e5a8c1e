/**
 * Files in memory without reading them: mapped by the system (mmap), so that a page comes from the disk when it is first used and
 * a file that several processes use is in memory once. In a browser's build `mapping.browser.ts` is in the place of this file.
 *
 * A mapping is private: what is written to it stays in this process, page by page, and never reaches the file. A mapped
 * file must not be cut shorter or written to by others meanwhile (to replace it by another of its name is fine, and what this package
 * does): the system then stops the process at the next access.
 */
import { constants } from "node:buffer";
import { type FileHandle, open } from "node:fs/promises";
import { declareForeign } from "../core/foreign.ts";

export interface MappedFile {
  readonly size: number;
  /** A view of `length` bytes from `offset`, without a copy, a buffer of its own. The file stays mapped as long as any is reachable. */
  view(offset: number, length: number): Uint8Array<ArrayBuffer>;
}

/** Smaller files are read: that is as fast, and leaves nothing behind. */
const leastBytes = 1 << 20;
/** Readable behind the file's end: a vector's load may reach past the last element. */
const margin = 1 << 16;

/** The system's numbers for what is asked of it. */
const readWrite = 3; // PROT_READ | PROT_WRITE
const privately = 2; // MAP_PRIVATE
const fixed = 0x10; // MAP_FIXED
const anonymous = process.platform === "darwin" ? 0x1000 : 0x20; // MAP_ANON
const failed = 2n ** 64n - 1n;

interface System {
  map(address: bigint, length: number, protection: number, flags: number, fd: number): bigint;
  unmap(address: bigint, length: number): void;
  view(address: bigint, length: number): ArrayBuffer;
}

let opening: Promise<System | null> | undefined;

async function openSystem(): Promise<System | null> {
  if (process.platform === "win32" || process.env["NABLA_MMAP"] === "0") return null;
  try {
    const { default: koffi } = await import("koffi");
    const library = koffi.load(null);
    const mmap = library.func(
      "uintptr_t mmap(uintptr_t at, size_t length, int protection, int flags, int fd, int64_t offset)",
    );
    const munmap = library.func("int munmap(uintptr_t at, size_t length)");
    return {
      map: (...args) => BigInt(mmap(...args, 0)),
      unmap: (address, length) => void munmap(address, length),
      view: (address, length) => koffi.view(address, length),
    };
  } catch {
    return null; // a platform for which koffi has no library
  }
}

/** What is alive of a mapping; the views keep it. */
class Mapping {
  readonly address: bigint;
  constructor(address: bigint) {
    this.address = address;
  }
}

/** What is held for a mapping must not lead back to it, not even by the context of a closure: plain data, then. */
interface Held {
  readonly system: System;
  readonly address: bigint;
  readonly length: number;
}
const released = new FinalizationRegistry<Held>(({ system, address, length }) => system.unmap(address, length));

function mapHandle(system: System, fd: number, size: number): MappedFile | null {
  const { map, unmap, view } = system;
  const length = size + margin;
  const address = map(0n, length, readWrite, privately | anonymous, -1);
  if (address === failed) return null;
  if (map(address, size, readWrite, privately | fixed, fd) === failed) {
    unmap(address, length);
    return null;
  }
  const owner = new Mapping(address);
  released.register(owner, { system, address, length });
  return {
    size,
    view: (offset, bytes) => {
      if (bytes === 0) return new Uint8Array(0);
      const at = owner.address + BigInt(offset);
      const buffer = view(at, bytes);
      declareForeign(buffer, { address: Number(at), owner });
      return new Uint8Array(buffer);
    },
  };
}

/**
 * Maps a file. Null where it is small, or can't be mapped or opened (a pipe, a system without mmap, no such file): then it is to be read, which
 * says what is wrong.
 */
export async function mapFile(path: string): Promise<MappedFile | null> {
  let handle: FileHandle | undefined;
  try {
    handle = await open(path, "r");
    const info = await handle.stat();
    if (!info.isFile() || info.size < leastBytes) return null;
    opening ??= openSystem();
    const system = await opening;
    return system && mapHandle(system, handle.fd, info.size);
  } catch {
    return null;
  } finally {
    await handle?.close();
  }
}

/** The most bytes that one view can have. */
export const longestView = constants.MAX_LENGTH;
