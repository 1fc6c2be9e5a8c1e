/** What goes wrong with the hub of models, with what to do about it. */
import { NablaError } from "../core/errors.ts";

/**
 * ACCESS: a login or permission is missing. NOT_FOUND: no such repository, revision or file. OFFLINE: not in the cache, and not to be fetched.
 * NETWORK: no answer, or a connection that broke. SERVER: an answer that makes no sense or says that the server can't.
 * DAMAGED: what came is not what the hub says it is. ENOSPC: no room.
 */
export type HubErrorCode = "ACCESS" | "NOT_FOUND" | "OFFLINE" | "NETWORK" | "SERVER" | "DAMAGED" | "ENOSPC" | "BROWSER";

/** A model of the hub that can't be had. The message names the repository or address and says what to do. */
export class HubError extends NablaError {
  override name = "HubError";
  readonly code: HubErrorCode;
  /** Of the answer, where there was one. */
  readonly status: number | null;
  constructor(
    code: HubErrorCode,
    message: string,
    options: { readonly status?: number; readonly cause?: unknown } = {},
  ) {
    super(message, { cause: options.cause });
    this.code = code;
    this.status = options.status ?? null;
  }
}

/** The error for who may have meant a folder: a name of the hub looks like a path of two parts. */
export const notHereEither = ({ code, message, status, cause }: HubError, path: string): HubError =>
  new HubError(code, `${message}. (It was looked for on the hub because there is no folder "${path}" here.)`, {
    cause,
    ...(status === null ? {} : { status }),
  });
