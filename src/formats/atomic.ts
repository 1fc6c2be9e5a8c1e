/**
 * Writing a file all or nothing, as the formats and the training folders use it. The code is `data/files.ts`, because
 * the tokenizers, which stand above the formats, write files too; this is the name under which the rest finds it.
 */
export {
  type Chunks,
  cleanStaleTemporaries,
  ensureFolder,
  FileError,
  fileError,
  writeFileAtomic,
} from "../data/files.ts";
export { readBytes } from "../data/source.ts";
