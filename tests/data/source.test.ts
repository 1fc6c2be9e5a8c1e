/** Sources: paths, addresses, blobs and bytes read the same, with progress, and fail saying what, where and what to do. */
import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, describe, test } from "node:test";
import { pathToFileURL } from "node:url";
import { gzipSync } from "node:zlib";
import fc from "fast-check";
import { FileError } from "../../src/data/errors.ts";
import { formatIdx, IdxError, loadIdxClassification, readIdx } from "../../src/data/idx.ts";
import { openSource, readBytes, type Source } from "../../src/data/source.ts";
import { readTextCorpus } from "../../src/data/text.ts";
import { encodeText, trainTokenizer } from "../../src/data/tokenize.ts";
import { loadTokenizer } from "../../src/data/tokenizer.ts";
import {
  formatSafetensors,
  load,
  readSafetensors,
  SafetensorsError,
  save,
  saveToBlob,
} from "../../src/formats/index.ts";
import { tensor } from "../../src/index.ts";
import { typescript } from "../support/typescript.ts";

const bytes = Uint8Array.from({ length: 300_000 }, (_, i) => Math.imul(i ^ (i >>> 7), 2654435761) >>> 24);
const array = { dtype: "uint8", shape: [300, 1000], data: bytes } as const;
const idx = formatIdx(array);
const weights = formatSafetensors({
  a: { dtype: "F32", shape: [2, 3], bytes: new Uint8Array(Float32Array.of(1, 2, 3, 4, 5, 6).buffer) },
  b: { dtype: "I64", shape: [1], bytes: new Uint8Array(BigInt64Array.of(-5n).buffer) },
});

describe("sources", () => {
  let folder: string;
  let server: Server;
  let address: string;
  /** Told when a request's connection was closed by its other end. */
  let closed: () => void = () => {};

  before(async () => {
    folder = await mkdtemp(join(tmpdir(), "nabla-source-"));
    server = createServer(({ url = "/" }, response) => {
      const answers: Record<string, () => void> = {
        "/idx.gz": () => response.setHeader("content-length", gzipSync(idx).length).end(gzipSync(idx)),
        // the length is that of the packed body, which nobody who unpacks it sees
        "/encoded": () =>
          response
            .writeHead(200, { "content-encoding": "gzip", "content-length": gzipSync(idx).length })
            .end(gzipSync(idx)),
        "/chunked": () => {
          response.write(idx.subarray(0, 1000));
          setTimeout(() => response.end(idx.subarray(1000)), 5);
        },
        "/cut": () => {
          response.writeHead(200, { "content-length": idx.length });
          response.write(idx.subarray(0, 100_000), () => setTimeout(() => response.destroy(), 20));
        },
        "/endless": () => {
          response.on("close", () => closed());
          response.write(idx.subarray(0, 100_000));
        },
        "/weights": () => response.setHeader("content-length", weights.length).end(weights),
        "/weights-short": () => response.end(weights.subarray(0, -3)),
        "/weights-long": () => response.end(Buffer.concat([weights, Buffer.of(0)])),
        "/weights-header": () => response.end(weights.subarray(0, 20)),
        "/empty": () => response.end(),
        "/secret": () => response.writeHead(403).end("no"),
        "/train-labels-idx1-ubyte": () =>
          response.end(formatIdx({ dtype: "uint8", shape: [300], data: new Uint8Array(300).fill(3) })),
      };
      (answers[url.replace(/\?.*/, "")] ?? (() => response.writeHead(404).end()))();
    });
    await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
    address = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
    await writeFile(join(folder, "idx.gz"), gzipSync(idx));
    await writeFile(join(folder, "idx"), idx);
    await writeFile(join(folder, "weights"), weights);
    await writeFile(join(folder, "empty"), "");
  });
  after(async () => {
    server.closeAllConnections();
    server.close();
    await rm(folder, { recursive: true });
  });

  test("a path, a file: URL, an address, a blob, a data: URL and bytes give the same", async () => {
    const sources: Source[] = [
      join(folder, "idx"),
      join(folder, "idx.gz"),
      pathToFileURL(join(folder, "idx.gz")),
      `${address}/idx.gz`,
      new URL(`${address}/idx.gz?query`),
      `${address}/chunked`,
      `${address}/encoded`,
      new Blob([idx]),
      new File([gzipSync(idx)], "chosen.gz"),
      URL.createObjectURL(new Blob([idx])),
      `data:application/octet-stream;base64,${gzipSync(idx).toString("base64")}`,
      idx,
      new Uint8Array(gzipSync(idx)),
    ];
    for (const source of sources) assert.deepEqual(await readIdx(source), array, String(source).slice(0, 60));
  });

  test("in pieces of any sizes the bytes are those of the whole, of every kind", async () => {
    const kinds: Source[] = [join(folder, "idx"), `${address}/chunked`, new Blob([idx]), idx];
    await fc.assert(
      fc.asyncProperty(
        fc.constantFrom(...kinds),
        fc.array(fc.integer({ min: 0, max: 150_000 }), { maxLength: 6 }),
        async (source, lengths) => {
          const reader = await openSource(source);
          let at = 0;
          for (const length of lengths) {
            const out = new Uint8Array(length);
            const read = await reader.fill(out);
            assert.equal(read, Math.min(length, idx.length - at));
            assert.ok(Buffer.from(out.subarray(0, read)).equals(idx.subarray(at, at + read)));
            at += read;
          }
          await reader.close();
        },
      ),
      { numRuns: 60 },
    );
  });

  test("progress rises to the whole; the whole is null where a server does not tell it", async () => {
    const told = async (source: Source) => {
      const calls: [number, number | null][] = [];
      await readBytes(source, { onProgress: (...call) => calls.push(call) });
      for (let i = 1; i < calls.length; i++) assert.ok(calls[i][0] >= calls[i - 1][0]);
      return calls;
    };
    const packed = gzipSync(idx).length;
    for (const [source, size, total] of [
      [join(folder, "idx"), idx.length, idx.length],
      [`${address}/idx.gz`, packed, packed],
      [new Blob([idx]), idx.length, idx.length],
      [idx, idx.length, idx.length],
      [`${address}/chunked`, idx.length, null],
      [`${address}/encoded`, idx.length, null],
    ] as const) {
      const calls = await told(source);
      assert.deepEqual(calls.at(-1), [size, total], String(source).slice(0, 60));
      if (source !== idx) assert.deepEqual(calls[0], [0, total]);
    }
    assert.ok((await told(`${address}/idx.gz`)).length > 3);
  });

  test("what can't be read is a FileError that says what, where and what to do", async () => {
    const refused = createServer();
    await new Promise<void>((resolve) => refused.listen(0, "127.0.0.1", resolve));
    const gone = `http://127.0.0.1:${(refused.address() as AddressInfo).port}/x`;
    await new Promise((resolve) => refused.close(resolve));
    const cases: [Source, string, RegExp][] = [
      [`${address}/none`, "HTTP404", /can't fetch http.*\/none: the server answers 404 Not Found; check the address/],
      [`${address}/secret`, "HTTP403", /the server answers 403 Forbidden; this needs a permission/],
      [gone, "ECONNREFUSED", /can't fetch .*\/x: there is no answer \(.*ECONNREFUSED.*\); check the address/],
      [
        `${address}/cut`,
        "UND_ERR_SOCKET",
        /\/cut: the connection ended after 100000 of 300012 bytes .*check the address/,
      ],
      [join(folder, "none"), "ENOENT", /can't read .*none: there is no such file or folder \(ENOENT\)/],
      [folder, "EISDIR", /it is a folder, a file was expected/],
      [join(folder, "idx", "below"), "ENOTDIR", /idx is a file, so nothing can lie below it/],
    ];
    for (const [source, code, message] of cases)
      for (const read of [readBytes, readIdx, ...(code === "UND_ERR_SOCKET" ? [] : [readSafetensors])])
        await assert.rejects(read(source), (e: Error) => {
          assert.ok(e instanceof FileError, String(e));
          assert.match(e.message, message);
          assert.equal(e.code, code);
          return true;
        });
    await assert.rejects(readIdx(`${address}/empty`), IdxError);
  });

  test("a signal gives up before, and in the middle: then the connection is closed", async () => {
    const reason = new Error("enough");
    for (const source of [join(folder, "idx"), `${address}/idx.gz`, new Blob([idx]), idx])
      await assert.rejects(readBytes(source, { signal: AbortSignal.abort(reason) }), reason);
    const end = new Promise<void>((resolve) => {
      closed = resolve;
    });
    const abort = new AbortController();
    const onProgress = (loaded: number) => loaded >= 100_000 && abort.abort(reason);
    await assert.rejects(readIdx(`${address}/endless`, { signal: abort.signal, onProgress }), reason);
    await end;
    const early = new AbortController();
    const stop = () => early.abort(reason);
    await assert.rejects(readBytes(new Blob([idx]), { signal: early.signal, onProgress: stop }), reason);
  });

  test("a file that has no size, such as a pipe, is read to its end", async (t) => {
    if (process.platform === "win32") return t.skip("no pipes of that kind here");
    const module = new URL("../../src/data/source.ts", import.meta.url).href;
    const script = `import { readBytes } from ${JSON.stringify(module)};
      const bytes = await readBytes("/dev/stdin");
      console.log(bytes.length, bytes.reduce((n, b) => n + b, 0));`;
    const node = [process.execPath, ...typescript, "--input-type=module", "-e", script];
    const child = spawnSync("sh", ["-c", 'cat "$0" | "$@"', join(folder, "idx"), ...node], { encoding: "utf8" });
    const text = child.stdout;
    assert.equal(text.trim(), `${idx.length} ${idx.reduce((n, b) => n + b, 0)}`);
  });

  test("safetensors come from everywhere, and what is cut off or too long is told without a size, too", async () => {
    for (const source of [join(folder, "weights"), `${address}/weights`, new Blob([weights]), weights]) {
      const state = await load(source);
      assert.deepEqual([...(await state["a"].data())], [1, 2, 3, 4, 5, 6]);
      assert.equal(await state["b"].item(), -5);
    }
    for (const [name, message] of [
      [
        "weights-short",
        /weights-short: tensor "a": data_offsets \[8, 32\] reach past the end, which is at 29; it is truncated/,
      ],
      ["weights-long", /some bytes after the last tensor belong to no tensor/],
      ["weights-header", /the header claims \d+ bytes, but the data ends after 12 of them/],
      ["empty", /only 0 bytes/],
    ] as const)
      await assert.rejects(load(`${address}/${name}`), (e: Error) => {
        assert.ok(e instanceof SafetensorsError, String(e));
        assert.match(e.message, message);
        return true;
      });
    await assert.rejects(load(join(folder, "empty")), /empty: only 0 bytes/);
  });

  test("what saveToBlob gives is what save writes", async () => {
    const state = { x: tensor([1, 2]), y: tensor([[3]]) };
    const path = join(folder, "saved.safetensors");
    await save(state, path, { metadata: { note: "é" } });
    const blob = await saveToBlob(state, { metadata: { note: "é" } });
    assert.deepEqual(new Uint8Array(await blob.arrayBuffer()), await readBytes(path));
    assert.deepEqual(Object.keys(await load(blob)), ["x", "y"]);
  });

  test("a classification set comes from files and addresses together, with one progress", async () => {
    const calls: [number, number | null][] = [];
    const images = new File([idx], "train-images-idx3-ubyte");
    const labels = new URL(`${address}/train-labels-idx1-ubyte?v=2`);
    const set = await loadIdxClassification([images, labels], { onProgress: (...call) => calls.push(call) });
    assert.deepEqual(set.train?.images, array);
    assert.equal(set.numClasses, 4);
    assert.deepEqual(calls.at(-1), [idx.length + 308, null]);
    await assert.rejects(
      loadIdxClassification([images]),
      /train-images-idx3-ubyte is here, but the file of the train labels/,
    );
    await assert.rejects(loadIdxClassification([new Blob([idx])]), /the files given: no IDX files found/);
  });

  test("texts and tokenizers come from blobs; whole texts are encoded as by the tokenizer", async () => {
    const file = new File(["hello world, ".repeat(50)], "a.txt");
    const { text, files } = await readTextCorpus([file, new Blob(["ß"])], { validation: 0 });
    assert.deepEqual(files, [
      { path: "a.txt", bytes: 650 },
      { path: "blob", bytes: 2 },
    ]);
    const tokenizer = await trainTokenizer(text, { kind: "byte-level-bpe", vocabSize: 260 });
    const again = await loadTokenizer(new Blob([JSON.stringify(tokenizer.toJSON())]));
    assert.deepEqual(await encodeText(again, text), tokenizer.encode(text));
    assert.equal((await trainTokenizer(text, { kind: "characters", unk: "<unk>" })).tokenId("ß"), 10);
    await assert.rejects(readTextCorpus(new Blob([""])), /blob: the file is empty/);
  });
});
