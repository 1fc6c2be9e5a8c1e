import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { deflateRawSync } from "node:zlib";
import * as browserChecksum from "../../src/data/checksum.browser.ts";
import * as nodeChecksum from "../../src/data/checksum.ts";
import * as browserDeflate from "../../src/data/inflate.browser.ts";
import * as nodeDeflate from "../../src/data/inflate.ts";
import { openAccess } from "../../src/formats/random-access.ts";
import { readZip, zipChunks } from "../../src/formats/zip.ts";

const noise = Uint8Array.from({ length: 50_000 }, (_, i) => (i * i * 31) >> 7);
const text = new TextEncoder().encode("the same again, ".repeat(20_000));

describe("zip", () => {
  test("more members than 16 bits can count are written and read with zip64", async () => {
    const name = (i: number) => `member ${i}`;
    const members = Array.from({ length: 70_000 }, (_, i) => [name(i), [Uint8Array.of(i & 255)]] as const);
    const archive = new Uint8Array(Buffer.concat([...zipChunks(members)]));
    const back = await readZip(await openAccess(archive, "zip"));
    assert.equal(back.size, members.length);
    for (const i of [0, 65_534, 65_535, 69_999])
      assert.deepEqual(await back.get(name(i))!.read(), Uint8Array.of(i & 255));
  });

  test("names that are not ASCII are UTF-8", async () => {
    const archive = Buffer.concat([...zipChunks([["∇.npy", [Uint8Array.of(1)]]])]);
    assert.equal(archive.readUInt16LE(6), 0x800);
    assert.deepEqual([...(await readZip(await openAccess(archive, "zip"))).keys()], ["∇.npy"]);
  });

  for (const [name, host] of Object.entries({
    node: { ...nodeDeflate, ...nodeChecksum },
    browser: { ...browserDeflate, ...browserChecksum },
  }))
    test(`deflated bytes are unpacked, in part too, and no further than they may (${name}'s means)`, async () => {
      for (const bytes of [noise, text]) {
        const packed = new Uint8Array(deflateRawSync(bytes));
        assert.deepEqual(Buffer.from(await host.inflateRaw(packed, bytes.length)), Buffer.from(bytes));
        await assert.rejects(host.inflateRaw(packed, bytes.length - 1));
        await assert.rejects(host.inflateRaw(packed.subarray(0, packed.length - 9), bytes.length));
        const start = await host.inflateStart(packed.subarray(0, packed.length >> 1));
        assert.ok(start.length > 1000 && start.length < bytes.length, `${start.length}`);
        assert.deepEqual(Buffer.from(start), Buffer.from(bytes.subarray(0, start.length)));
        assert.equal((await host.inflateStart(packed)).length, bytes.length);
        assert.equal((await host.inflateRaw(packed, bytes.length)).constructor, Uint8Array);
      }
      await assert.rejects(host.inflateStart(Uint8Array.of(255, 255, 255)));
      assert.equal(host.crc32(new TextEncoder().encode("123456789")), 0xcbf43926); // the check value of CRC-32
      assert.equal(host.crc32(text.subarray(7), host.crc32(text.subarray(0, 7))), host.crc32(text));
    });
});
