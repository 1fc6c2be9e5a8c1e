/** The errors of reading and of what is read: apart from what throws them, so that a page knows those of its worker. */
import { NablaError } from "../core/errors.ts";

/**
 * A file, folder or address that can't be read or written. `code` is the system's (ENOSPC, EACCES, …), "HTTP404" and the like for a
 * server's answer, or "NETWORK"; `path` is what was meant.
 */
export class FileError extends NablaError {
  override name = "FileError";
  readonly code: string;
  readonly path: string;
  constructor(message: string, code: string, path: string, cause?: unknown) {
    super(message, { cause });
    this.code = code;
    this.path = path;
  }
}

/** A file that is not valid IDX, or a folder without the files that a classifier needs. */
export class IdxError extends NablaError {
  override name = "IdxError";
}

/** A picture that is damaged, or of a kind that is not read. */
export class ImageError extends NablaError {
  override name = "ImageError";
}

/** A recording that is damaged, or of a kind that is not read. */
export class AudioError extends NablaError {
  override name = "AudioError";
}

/** Text that can't be used: empty, binary, not UTF-8. Missing paths are FileErrors. */
export class TextError extends NablaError {
  override name = "TextError";
}

/** Text that can't be encoded, ids that can't be decoded, a tokenizer file that is damaged or of another kind. */
export class TokenizerError extends NablaError {
  override name = "TokenizerError";
}

/** A chat template that can't be read, or that fails on a conversation. The message says in which of its lines. */
export class ChatTemplateError extends NablaError {
  override name = "ChatTemplateError";
}
