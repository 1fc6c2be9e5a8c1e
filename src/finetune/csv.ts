/**
 * Tables as text (RFC 4180): fields in quotes may hold separators, line ends and doubled quotes. Every record knows the line that it
 * begins on, so that a mistake can be shown where it is.
 */
import { FinetuneError } from "./errors.ts";

export interface CsvRecord {
  readonly fields: readonly string[];
  /** The line that it begins on, from 1. */
  readonly line: number;
}

/** The separator that the first line is cut into most fields by; a comma in doubt. */
function separatorOf(text: string): string {
  const first = text.slice(0, text.search(/[\r\n]|$/));
  const counted = [",", "\t", ";"].map((separator) => [separator, first.split(separator).length] as const);
  return counted.reduce((best, each) => (each[1] > best[1] ? each : best))[0];
}

/** All records; empty lines are none. Throws FinetuneError naming file and line for quotes that are not closed, or misplaced. */
export function parseCsv(text: string, file: string, separator = separatorOf(text)): CsvRecord[] {
  const records: CsvRecord[] = [];
  let fields: string[] = [];
  let line = 1;
  let begin = 1;
  let at = text.charCodeAt(0) === 0xfeff ? 1 : 0;
  const bad = (what: string) => new FinetuneError(`${file}, line ${line}: ${what}`);
  const endOfRecord = () => {
    if (fields.length > 1 || fields[0] !== "") records.push({ fields, line: begin });
    fields = [];
    begin = line;
  };
  while (at < text.length) {
    let field: string;
    if (text[at] === '"') {
      const quoted = readQuoted(text, at, bad);
      field = quoted.field;
      at = quoted.end;
      line += field.split("\n").length - 1;
      if (at < text.length && text[at] !== separator && text[at] !== "\r" && text[at] !== "\n")
        throw bad(
          `after a field in quotes comes ${JSON.stringify(text[at])}, expected a separator or the line's end; a quote inside of a field is doubled`,
        );
    } else {
      const start = at;
      while (at < text.length && text[at] !== separator && text[at] !== "\n" && text[at] !== "\r") at++;
      field = text.slice(start, at);
    }
    fields.push(field);
    if (text[at] === separator) {
      at++;
      if (at === text.length) fields.push("");
      continue;
    }
    if (text[at] === "\r" && text[at + 1] === "\n") at++;
    at++;
    line++;
    endOfRecord();
  }
  if (fields.length > 0) endOfRecord();
  return records;
}

/** The field whose opening quote is at `start`, and where it ends. */
function readQuoted(text: string, start: number, bad: (what: string) => Error): { field: string; end: number } {
  let field = "";
  for (let at = start + 1; ; ) {
    const quote = text.indexOf('"', at);
    if (quote < 0) throw bad("a quote is opened and never closed; a quote inside of a field is doubled");
    field += text.slice(at, quote);
    if (text[quote + 1] !== '"') return { field, end: quote + 1 };
    field += '"';
    at = quote + 2;
  }
}

/** The head of a table and its other records, which are as long. Throws FinetuneError naming the line that is too short or long. */
export function readTable(text: string, file: string): { readonly head: CsvRecord; readonly records: CsvRecord[] } {
  const [head, ...records] = parseCsv(text, file);
  if (head === undefined)
    throw new FinetuneError(`${file}: the table is empty; expected a first line with names of columns`);
  for (const { fields, line } of records)
    if (fields.length !== head.fields.length)
      throw new FinetuneError(
        `${file}, line ${line}: ${fields.length} fields, expected ${head.fields.length} as in the first line; a field with a separator in it is put in quotes`,
      );
  return { head, records };
}

/** The named columns of each record of a table. Throws FinetuneError naming the column. */
export function readColumns<K extends string>(
  table: ReturnType<typeof readTable>,
  file: string,
  columns: Readonly<Record<K, string>>,
): (Record<K, string> & { readonly line: number })[] {
  const { head, records } = table;
  const names = Object.entries(columns) as [K, string][];
  const places = names.map(([, column]) => head.fields.indexOf(column));
  const missing = names.find((_, i) => places[i] < 0);
  if (missing !== undefined)
    throw new FinetuneError(
      `${file}, line ${head.line}: there is no column "${missing[1]}"; there are ${head.fields.map((f) => `"${f}"`).join(", ")}. Name one of them (--text, --label)`,
    );
  return records.map(({ fields, line }) => {
    const row = Object.fromEntries(names.map(([key], i) => [key, fields[places[i]]])) as Record<K, string>;
    return { ...row, line };
  });
}
