/**
 * The right sides of products, in the micro-kernel's order: copied once for all the products of a program that read the same
 * one the same way (a weight that a network unrolled in time meets at every step), or for each of them where they are two.
 */
import type { Buffer } from "../../compiler/schedule.ts";
import { type Draft, draftOf } from "./commands.ts";
import type { CommandDesc } from "./contract.ts";
import type { Place } from "./loops.ts";

interface Pack<W> {
  readonly packed: Buffer;
  readonly work: W;
  readonly readers: W[];
  /** The same copy to another place. */
  again(): { readonly packed: Buffer; readonly work: W };
}

interface Reader<W> {
  readonly lead: W[];
  readonly reads: Buffer[];
  readonly draft: Draft;
}

export class Packs<W extends Reader<W>> {
  private readonly work: (label: string, reads: Buffer[], writes: Buffer[], draft: Draft, flops: number) => W;
  /** By what is copied, and how. */
  private readonly made = new Map<Buffer, Map<string, Pack<W>>>();

  constructor(work: Packs<W>["work"]) {
    this.work = work;
  }

  /** The copy that `command` makes of `from`; `bytes` is its size. */
  of(command: CommandDesc<string>, from: Place, bytes: number, name: string): Pack<W> {
    const key = JSON.stringify([from[1], command.params]);
    const ofBuffer = this.made.get(from[0]) ?? new Map<string, Pack<W>>();
    this.made.set(from[0], ofBuffer);
    let pack = ofBuffer.get(key);
    if (!pack) {
      const again = (): { packed: Buffer; work: W } => {
        const packed: Buffer = { bytes, slot: -1, offset: 0, label: `packed for ${name}` };
        const draft = draftOf(command, { b: from, packed: [packed, 0] });
        return { packed, work: this.work(`pack for ${name}`, [from[0]], [packed], draft, 0) };
      };
      pack = { ...again(), readers: [], again };
      ofBuffer.set(key, pack);
    }
    return pack;
  }

  /** Says that `reader` needs the copy: it is made right before the only reader; for several, once, when there is room. */
  read({ readers, work }: Pack<W>, reader: W): void {
    if (readers.push(reader) === 1) reader.lead.push(work);
    else readers[0].lead.splice(0);
  }
  /**
   * Once all readers are known. Two of them are a block and the same block computed again for its gradient: one copy would be kept from
   * the one to the other, and a step would hold the copies of all weights. A copy is little work beside a product.
   */
  finish(): void {
    for (const { packed, work, readers, again } of [...this.made.values()].flatMap((of) => [...of.values()])) {
      if (readers.length !== 2) continue;
      const [first, second] = readers;
      const copy = again();
      first.lead.push(work);
      second.lead.push(copy.work);
      const { buffers } = second.draft;
      buffers[buffers.findIndex(([buffer]) => buffer === packed)] = [copy.packed, 0];
      second.reads.splice(second.reads.indexOf(packed), 1, copy.packed);
    }
  }
}
