/** Mapping of files: a page has none. */
import type { MappedFile } from "./mapping.ts";

export type { MappedFile } from "./mapping.ts";

/** Null: the file is to be read. */
export const mapFile = async (_path: string): Promise<MappedFile | null> => null;
export const longestView = 0;
