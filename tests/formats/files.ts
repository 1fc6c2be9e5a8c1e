/** The files that PyTorch, NumPy and the gguf package wrote (tests/parity/generators/formats.py), and real ones where they are. */
import { existsSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { readFixture } from "../support/fixtures.ts";

interface Fixture {
  readonly gguf: readonly {
    readonly file: string;
    readonly values: string;
    readonly tensors: Readonly<Record<string, { readonly shape: number[]; readonly float32: string }>>;
  }[];
  readonly torch: {
    readonly files: Readonly<Record<string, string>>;
    readonly tensors: Readonly<Record<string, TorchExpected>>;
    readonly big: { readonly file: string; readonly tensors: Readonly<Record<string, TorchExpected>> };
    readonly bare: string;
  };
  readonly numpy: {
    readonly npy: readonly NpyExpected[];
    readonly refused: Readonly<Record<string, string>>;
    readonly npz: {
      readonly files: Readonly<Record<string, string>>;
      readonly arrays: Readonly<Record<string, Omit<NpyExpected, "file" | "fortranOrder">>>;
    };
  };
}
export interface TorchExpected {
  readonly dtype: string;
  readonly shape: number[];
  readonly data: string;
  readonly requiresGrad: boolean;
}
export interface NpyExpected {
  readonly kind: string;
  readonly file: string;
  readonly shape: number[];
  readonly fortranOrder: boolean;
  readonly data: string;
}

export const fixture = readFixture<Fixture>("formats");

/** A buffer of its own, so that nothing else is at the ends of it. */
export const bytesOf = (base64: string): Uint8Array<ArrayBuffer> => Uint8Array.from(Buffer.from(base64, "base64"));
export const floatsOf = (base64: string): Float32Array => new Float32Array(bytesOf(base64).buffer);

/** NumPy's letters, in PyTorch's names. */
export const kinds: Readonly<Record<string, string>> = {
  b1: "bool",
  i1: "int8",
  u1: "uint8",
  i2: "int16",
  u2: "uint16",
  f2: "float16",
  i4: "int32",
  u4: "uint32",
  f4: "float32",
  i8: "int64",
  u8: "uint64",
  f8: "float64",
};

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const shared = process.env["NABLA_TEST_DATA"] ?? join(root, "..", "shared", "data");
/** A real file's path, and for test() whether it is missing. */
export function realFile(path: string): { readonly path: string; readonly skip: string | false } {
  const full = join(shared, path);
  return { path: full, skip: !existsSync(full) && "no test data here (NABLA_TEST_DATA)" };
}
