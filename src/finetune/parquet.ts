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

/** A node of hyparquet's tree of a schema, as far as it is looked at. */
interface SchemaNode {
  readonly element: { readonly name: string };
  readonly children: readonly SchemaNode[];
}
interface RowGroup {
  readonly columns: readonly { readonly meta_data?: { readonly path_in_schema: readonly string[] } }[];
}

/** The paths of the columns that hold values. */
const leaves = ({ element, children }: SchemaNode, path: readonly string[] = []): string[] => {
  const own = [...path, element.name];
  return children.length > 0 ? children.flatMap((child) => leaves(child, own)) : [own.join(".")];
};

/**
 * Throws where the row groups have other columns than the schema, or one twice: hyparquet would begin to read them all and then forget those that it
 * has no place for, whose errors nobody could catch.
 */
function checkColumns(schema: SchemaNode, groups: readonly RowGroup[]): void {
  const expected = schema.children.flatMap((child) => leaves(child)).sort();
  if (new Set(expected).size !== expected.length) throw new Error("two columns have one name");
  groups.forEach(({ columns }, g) => {
    const found = columns.map(({ meta_data }) => meta_data?.path_in_schema.join(".") ?? "").sort();
    if (found.join("\n") !== expected.join("\n")) throw new Error(`row group ${g} has other columns than the schema`);
  });
}

/**
 * The rows of a file, with those of `columns` and `others` that it has. Throws FileError where it can't be read, and FinetuneError where it is not Parquet, is damaged, or
 * has none of them, naming `columns` and those that it has.
 */
export async function readParquet(
  source: FormatSource,
  columns: readonly string[],
  others: readonly string[] = [],
): Promise<ParquetRow[]> {
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
  const [metadata, present] = await orDamaged(async () => {
    const read = await parquetMetadataAsync(file);
    const schema = parquetSchema(read);
    checkColumns(schema, read.row_groups);
    return [read, schema.children.map(({ element }) => element.name)] as const;
  });
  const wanted = [...new Set([...columns, ...others])].filter((column) => present.includes(column));
  if (wanted.length === 0)
    throw new FinetuneError(
      `${name}: there is no column ${columns.map((c) => `"${c}"`).join(" or ")}; there are ${present.map((c) => `"${c}"`).join(", ") || "none"}`,
    );
  const rows = await orDamaged(() => parquetReadObjects({ file, metadata, columns: wanted, compressors }));
  return rows.map((row, i) => ({ where: `${name}, row ${i + 1}`, value: plain({ ...row }) as object }));
}
