/**
 * Damages files, at random but from a seed: bytes anywhere, and the fields that a format is built of (lengths, counts, offsets,
 * types, opcodes), which the walkers here find. They know the formats by themselves, and share no code with the readers.
 */

/** A number in a file. */
export interface Field {
  readonly at: number;
  readonly bytes: 1 | 2 | 4 | 8;
}

/** Mulberry32: numbers in [0, 1) from a seed. */
export function randomFrom(seed: number): () => number {
  let state = seed | 0;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 4294967296;
  };
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function get(bytes: Uint8Array, { at, bytes: n }: Field): bigint {
  let value = 0n;
  for (let i = n - 1; i >= 0; i--) value = (value << 8n) | BigInt(bytes[at + i] ?? 0);
  return value;
}

function set(bytes: Uint8Array, { at, bytes: n }: Field, value: bigint): void {
  for (let i = 0; i < n && at + i < bytes.length; i++) bytes[at + i] = Number((value >> BigInt(8 * i)) & 255n);
}

/** GGUF: every length, count, type, dimension and offset. */
export function ggufFields(bytes: Uint8Array): Field[] {
  const view = viewOf(bytes);
  const fields: Field[] = [];
  let at = 4;
  const number = (n: 4 | 8): number => {
    fields.push({ at, bytes: n });
    at += n;
    return n === 4 ? view.getUint32(at - 4, true) : Number(view.getBigUint64(at - 8, true));
  };
  const text = (): void => {
    const length = number(8);
    at += length;
  };
  const sizes = [1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8];
  const value = (type: number): void => {
    if (type === 8) text();
    else if (type === 9) {
      const item = number(4);
      for (let n = number(8); n > 0; n--) value(item);
    } else at += sizes[type];
  };
  number(4);
  const tensors = number(8);
  for (let n = number(8); n > 0; n--) {
    text();
    value(number(4));
  }
  for (let t = 0; t < tensors; t++) {
    text();
    for (let n = number(4); n > 0; n--) number(8);
    number(4);
    number(8);
  }
  return fields;
}

const record = (start: number, fields: readonly (readonly [offset: number, bytes: Field["bytes"]])[]): Field[] =>
  fields.map(([offset, bytes]) => ({ at: start + offset, bytes }));

/** Zip: the fields of every record, found by their signatures, and of the 64-bit sizes in extra fields. */
export function zipFields(bytes: Uint8Array): Field[] {
  const view = viewOf(bytes);
  const fields: Field[] = [];
  const layouts: Readonly<Record<number, readonly (readonly [number, Field["bytes"]])[]>> = {
    67324752: [
      [6, 2],
      [8, 2],
      [14, 4],
      [18, 4],
      [22, 4],
      [26, 2],
      [28, 2],
    ],
    33639248: [
      [8, 2],
      [10, 2],
      [16, 4],
      [20, 4],
      [24, 4],
      [28, 2],
      [30, 2],
      [32, 2],
      [42, 4],
    ],
    101010256: [
      [4, 2],
      [6, 2],
      [8, 2],
      [10, 2],
      [12, 4],
      [16, 4],
      [20, 2],
    ],
    101075792: [
      [4, 8],
      [24, 8],
      [32, 8],
      [40, 8],
      [48, 8],
    ],
    117853008: [
      [4, 4],
      [8, 8],
      [16, 4],
    ],
  };
  for (let at = 0; at + 22 <= bytes.length; at++) {
    if (bytes[at] !== 0x50 || bytes[at + 1] !== 0x4b) continue;
    const signature = view.getUint32(at, true);
    const layout = layouts[signature];
    if (layout === undefined || at + 4 + layout.at(-1)![0] > bytes.length) continue;
    fields.push(...record(at, layout));
    if (signature !== 0x04034b50 || at + 30 > bytes.length) continue;
    const name = view.getUint16(at + 26, true);
    if (view.getUint16(at + 28, true) >= 20)
      fields.push(
        ...record(at + 30 + name, [
          [0, 2],
          [2, 2],
          [4, 8],
          [12, 8],
        ]),
      );
  }
  return fields;
}

/** The headers of .npy: version, length, and each character that is a digit, a bracket or part of the type. */
export function npyFields(bytes: Uint8Array): Field[] {
  const fields: Field[] = [];
  const whole = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length);
  for (let at = whole.indexOf("\x93NUMPY", 0, "latin1"); at >= 0; at = whole.indexOf("\x93NUMPY", at + 6, "latin1")) {
    fields.push(
      ...record(at, [
        [6, 1],
        [7, 1],
        [8, 2],
      ]),
    );
    const end = whole.indexOf("\n", at, "latin1");
    for (let i = at + 10; i < end; i++)
      if (/[^ a-z]/.test(String.fromCharCode(bytes[i]))) fields.push({ at: i, bytes: 1 });
  }
  return fields;
}

/** How an opcode's argument lies: bytes of a number; or of a length, after which as many bytes follow; or lines. */
const lengths: Readonly<Record<string, 1 | 4 | 8>> = {
  U: 1,
  T: 4,
  X: 4,
  C: 1,
  B: 4,
  "\x8a": 1,
  "\x8b": 4,
  "\x8c": 1,
  "\x8d": 8,
  "\x8e": 8,
};
const numbers: Readonly<Record<string, 1 | 2 | 4 | 8>> = {
  K: 1,
  M: 2,
  J: 4,
  G: 8,
  q: 1,
  r: 4,
  h: 1,
  j: 4,
  "\x80": 1,
  "\x95": 8,
};

/** A pickle from `at`: its opcodes and their numbers; returns where it ends. */
export function pickleFields(bytes: Uint8Array, at: number, fields: Field[]): number {
  while (at < bytes.length) {
    const opcode = String.fromCharCode(bytes[at]);
    fields.push({ at, bytes: 1 });
    at++;
    const length = lengths[opcode];
    const number = numbers[opcode];
    if (length !== undefined) {
      fields.push({ at, bytes: length });
      at += length + Number(get(bytes, { at, bytes: length }));
    } else if (number !== undefined) {
      fields.push({ at, bytes: number });
      at += number;
    } else if (opcode === "c") for (let lines = 2; lines > 0; at++) lines -= bytes[at] === 10 ? 1 : 0;
    else if (opcode === ".") break;
  }
  return at;
}

/** A torch file of the older form: five pickles, and the first size (those that follow are found from the sizes). */
export function legacyFields(bytes: Uint8Array): Field[] {
  const fields: Field[] = [];
  let at = 0;
  for (let i = 0; i < 5; i++) at = pickleFields(bytes, at, fields);
  fields.push({ at, bytes: 8 });
  return fields;
}

/** A torch file of the newer form: the zip, and the pickle in it where it is stored. */
export function torchFields(bytes: Uint8Array): Field[] {
  const fields = zipFields(bytes);
  const name = Buffer.from(bytes.buffer, bytes.byteOffset, bytes.length).indexOf("data.pkl");
  const view = viewOf(bytes);
  const header = Buffer.from(bytes.buffer, bytes.byteOffset, name).lastIndexOf(Buffer.from("PK\x03\x04"));
  const at = header + 30 + view.getUint16(header + 26, true) + view.getUint16(header + 28, true);
  // a few times over: there are more fields of the zip
  if (view.getUint16(header + 8, true) === 0) for (let i = 0; i < 3; i++) pickleFields(bytes, at, fields);
  return fields;
}

/** A number to put in a field's place. */
function otherValue(bytes: Uint8Array, field: Field, fields: readonly Field[], random: () => number): bigint {
  const below = (n: number): number => Math.floor(random() * n);
  const old = get(bytes, field);
  const top = 1n << BigInt(8 * field.bytes);
  const values = [
    () => 0n,
    () => 1n,
    () => top - 1n,
    () => top / 2n,
    () => top / 2n - 1n,
    () => old + 1n,
    () => old - 1n,
    () => old * 2n,
    () => old ^ (1n << BigInt(below(8 * field.bytes))),
    () => BigInt(below(64)),
    () => BigInt(below(256)),
    () => BigInt(bytes.length + below(3) - 1),
    () => BigInt(below(bytes.length)),
    () => (1n << BigInt(below(8 * field.bytes))) + BigInt(below(3) - 1),
    () => get(bytes, fields[below(fields.length)]),
  ];
  return BigInt.asUintN(8 * field.bytes, values[below(values.length)]());
}

/** Something that is done to bytes without knowing what they mean. */
function blindly(bytes: Uint8Array, random: () => number): Uint8Array {
  const below = (n: number): number => Math.floor(random() * n);
  const at = below(bytes.length);
  const length = 1 + below(Math.min(64, bytes.length - at));
  const some = bytes.subarray(at, at + length);
  switch (below(7)) {
    case 0:
      bytes[at] ^= 1 << below(8);
      return bytes;
    case 1:
      for (let i = at; i < at + length; i++) bytes[i] = below(256);
      return bytes;
    case 2:
      some.fill(random() < 0.5 ? 0 : 255);
      return bytes;
    case 3:
      return bytes.subarray(0, at);
    case 4: // taken out
      return Buffer.concat([bytes.subarray(0, at), bytes.subarray(at + length)]);
    case 5: // there twice
      return Buffer.concat([bytes.subarray(0, at + length), bytes.subarray(at)]);
    default:
      bytes.copyWithin(below(bytes.length), at, at + length);
      return bytes;
  }
}

/** A damaged copy: one to three numbers of its structure in three of four cases, else bytes. */
export function mutated(original: Uint8Array, fields: readonly Field[], random: () => number): Uint8Array {
  let bytes: Uint8Array = new Uint8Array(original);
  const structural = random() < 0.75;
  for (let n = 1 + Math.floor(random() * 3); n > 0; n--) {
    if (bytes.length === 0) break;
    const field = fields[Math.floor(random() * fields.length)];
    if (structural) set(bytes, field, otherValue(bytes, field, fields, random));
    else bytes = blindly(bytes, random);
  }
  return bytes;
}
