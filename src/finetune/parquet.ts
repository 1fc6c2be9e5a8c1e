/**
 * Rows of Parquet files, read by hyparquet, which needs nothing native. Only the columns that are asked for are read, and of the file only the parts that
 * hold them. Packages for both are loaded with the first file.
 */
import { type FormatSource, openAccess } from "../formats/random-access.ts";
import { FinetuneError } from "./errors.ts";

/** A row as an object, with what stands where; fields without a value are left out. */
export interface ParquetRow {
  readonly where: string;
  readonly value: object;
}

/** Values as JSON has them: whole numbers of 64 bits become numbers, where they are exact, else texts; null is left out. */
function plain(value: unknown): unknown {
  if (typeof value === "bigint") return Number.isSafeInteger(Number(value)) ? Number(value) : String(value);
  if (Array.isArray(value)) return value.map(plain);
  if (typeof value !== "object" || value === null || value.constructor !== Object) return value;
  return Object.fromEntries(
    Object.entries(value).flatMap(([name, each]) => (each === null || each === undefined ? [] : [[name, plain(each)]])),
  );
}

/**
 * The rows of a file, with those of `columns` that it has. Throws FileError where it can't be read, and FinetuneError where it is not Parquet, is damaged, or
 * has none of the columns, naming those that it has.
 */
export async function readParquet(source: FormatSource, columns: readonly string[]): Promise<ParquetRow[]> {
  const [{ parquetMetadataAsync, parquetReadObjects, parquetSchema }, { compressors }] = await Promise.all([
    import("hyparquet"),
    import("hyparquet-compressors"),
  ]);
  const { name, size, read } = await openAccess(source, "parquet");
  const file = {
    byteLength: size,
    slice: async (start: number, end = size): Promise<ArrayBuffer> => {
      const bytes = await read(start, end - start);
      return bytes.buffer.slice(bytes.byteOffset, bytes.byteOffset + bytes.length) as ArrayBuffer;
    },
  };
  const orDamaged = async <T>(work: () => Promise<T>): Promise<T> => {
    try {
      return await work();
    } catch (error) {
      const { message } = error as Error;
      throw new FinetuneError(`${name}: this can't be read as Parquet (${message}); it is damaged, or something else`, {
        cause: error,
      });
    }
  };
  const metadata = await orDamaged(() => parquetMetadataAsync(file));
  const present = parquetSchema(metadata).children.map(({ element }) => element.name);
  const wanted = columns.filter((column) => present.includes(column));
  if (wanted.length === 0)
    throw new FinetuneError(
      `${name}: there is no column ${columns.map((c) => `"${c}"`).join(" or ")}; there are ${present.map((c) => `"${c}"`).join(", ") || "none"}`,
    );
  const rows = await orDamaged(() => parquetReadObjects({ file, metadata, columns: wanted, compressors }));
  return rows.map((row, i) => ({ where: `${name}, row ${i + 1}`, value: plain({ ...row }) as object }));
}
