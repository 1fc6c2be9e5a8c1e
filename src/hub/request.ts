/**
 * Requests to the hub: with a token that no other host gets to see, redirects followed here, a limit on silence, and
 * another attempt after what may pass. What the answers mean for a cache is `download.ts`.
 */
import { setTimeout as sleep } from "node:timers/promises";
import { HubError } from "./errors.ts";
import type { HubSettings } from "./settings.ts";

const maxRedirects = 8;
const userAgent = "nabla";

/** Failures that may pass; `after` is what the server asks to wait, in milliseconds. */
const passing = new WeakMap<Error, { readonly after: number }>();

/** Marks an error as one that may pass. */
export function mayPass(error: HubError, after = 0): HubError {
  passing.set(error, { after });
  return error;
}
export const isPassing = (error: unknown): boolean => error instanceof Error && passing.has(error);

/**
 * Does `attempt`, again after failures that may pass, with growing pauses. `gained` says whether there was progress since it was last
 * asked: then the count starts anew.
 */
export async function withRetries<T>(
  { retries, signal }: HubSettings,
  attempt: () => Promise<T>,
  gained: () => boolean = () => false,
): Promise<T> {
  for (let failures = 0; ; ) {
    signal?.throwIfAborted();
    try {
      return await attempt();
    } catch (error) {
      signal?.throwIfAborted();
      if (!isPassing(error)) throw error;
      failures = gained() ? 1 : failures + 1;
      if (failures > retries.times) throw error;
      const pause = retries.delay * 2 ** (failures - 1) * (0.75 + Math.random() / 2);
      const asked = Math.min(passing.get(error as Error)!.after, 60_000);
      await sleep(Math.max(Math.min(pause, 10_000), asked), undefined, signal ? { signal } : {}).catch(() => {});
    }
  }
}

/** An answer whose body is still to come. */
export interface Answer {
  readonly status: number;
  readonly address: string;
  /** The first that any answer on the way has given: the hub names a file's hash before it sends elsewhere for the bytes. */
  header(name: string): string | null;
  /** The body's pieces. Throws HubError where it breaks off or stands still. */
  pieces(): AsyncGenerator<Uint8Array>;
  /** All of the body; more than `most` bytes are an error. */
  bytes(most: number): Promise<Uint8Array>;
  /** Lets the body go. */
  cancel(): Promise<void>;
}

const causeOf = (error: unknown): string => {
  const { cause, message } = error as { cause?: { code?: string; message?: string }; message: string };
  return cause?.message || cause?.code || message;
};

function noAnswer(address: string, error: unknown, quiet: boolean, timeout: number): HubError {
  const why = quiet ? `nothing came for ${timeout / 1000} s` : causeOf(error);
  return mayPass(
    new HubError(
      "NETWORK",
      `can't reach ${address} (${why}); check the connection, and HF_ENDPOINT where it is set; HF_HUB_OFFLINE=1 uses the cache alone`,
      { cause: error },
    ),
  );
}

/** One request without its redirects. */
async function send(settings: HubSettings, address: string, method: string, headers: Record<string, string>) {
  const { signal, timeout } = settings;
  const silence = new AbortController();
  let timer = setTimeout(() => silence.abort(), timeout);
  const heard = (): void => {
    clearTimeout(timer);
    timer = setTimeout(() => silence.abort(), timeout);
  };
  const over = (): void => clearTimeout(timer);
  try {
    const response = await fetch(address, {
      method,
      headers,
      redirect: "manual",
      signal: signal ? AbortSignal.any([signal, silence.signal]) : silence.signal,
    });
    heard();
    return { response, heard, over, quiet: () => silence.signal.aborted };
  } catch (error) {
    over();
    signal?.throwIfAborted();
    throw noAnswer(address, error, silence.signal.aborted, timeout);
  }
}

const isRedirect = (status: number): boolean => status >= 300 && status < 400 && status !== 304;

/**
 * Asks for an address. Redirects are followed; where `stay`, only those within the host, so that a HEAD learns what the hub says of a
 * file and not what the host of its bytes does. The token goes to the hub's own origin only.
 */
export async function ask(
  settings: HubSettings,
  start: string,
  method: "GET" | "HEAD",
  { stay = false, range = 0 }: { readonly stay?: boolean; readonly range?: number } = {},
): Promise<Answer> {
  const seen = new Map<string, string>();
  const hub = new URL(settings.endpoint).origin;
  for (let address = start, hops = 0; ; hops++) {
    const headers: Record<string, string> = { "user-agent": userAgent, "accept-encoding": "identity" };
    const { origin } = new URL(address);
    if (settings.token !== null && origin === hub) headers["authorization"] = `Bearer ${settings.token}`;
    if (range > 0) headers["range"] = `bytes=${range}-`;
    const sent = await send(settings, address, method, headers);
    const { response } = sent;
    for (const [name, value] of response.headers) if (!seen.has(name) || !name.startsWith("x-")) seen.set(name, value);
    const to = isRedirect(response.status) ? response.headers.get("location") : null;
    const next = to === null ? null : new URL(to, address);
    if (next === null || (stay && (next.origin !== origin || seen.has("x-linked-etag"))))
      return answerOf(settings, address, sent, seen);
    sent.over();
    await response.body?.cancel().catch(() => {});
    if (hops === maxRedirects || !/^https?:$/.test(next.protocol))
      throw new HubError(
        "SERVER",
        `${start}: redirected ${hops + 1} times, at last to ${next.href}; check HF_ENDPOINT`,
      );
    address = next.href;
  }
}

function answerOf(
  settings: HubSettings,
  address: string,
  { response, heard, over, quiet }: Awaited<ReturnType<typeof send>>,
  seen: ReadonlyMap<string, string>,
): Answer {
  const { body, status } = response;
  if (body === null) over();
  async function* pieces(): AsyncGenerator<Uint8Array> {
    const reader = body?.getReader();
    let loaded = 0;
    try {
      while (reader) {
        heard();
        const { done, value } = await reader.read();
        over(); // while the bytes are written somewhere nobody waits for the server
        if (done) break;
        loaded += value.length;
        yield value;
      }
    } catch (error) {
      settings.signal?.throwIfAborted();
      const why = quiet() ? `nothing came for ${settings.timeout / 1000} s` : causeOf(error);
      throw mayPass(
        new HubError("NETWORK", `${address}: the connection broke off after ${loaded} bytes (${why})`, {
          cause: error,
        }),
      );
    } finally {
      over();
      await reader?.cancel().catch(() => {});
    }
  }
  return {
    status,
    address,
    header: (name) => seen.get(name) ?? null,
    pieces,
    bytes: async (most) => {
      const all: Uint8Array[] = [];
      let loaded = 0;
      for await (const piece of pieces()) {
        loaded += piece.length;
        if (loaded > most)
          throw new HubError("SERVER", `${address}: the answer is over ${most} bytes; check HF_ENDPOINT`);
        all.push(piece);
      }
      return Buffer.concat(all);
    },
    cancel: async () => {
      over();
      await body?.cancel().catch(() => {});
    },
  };
}

/** Milliseconds of a Retry-After header in seconds; of one that is a date, or none, 0. */
const retryAfter = (text: string | null): number =>
  text !== null && /^\d+$/.test(text.trim()) ? 1000 * Number(text) : 0;

/** What an answer that is not one means: for `what` (a repository, or a file of one). */
export function refusal(settings: HubSettings, answer: Answer, what: string, id: string, revision: string): HubError {
  const { status } = answer;
  const kind = answer.header("x-error-code");
  const said = answer.header("x-error-message");
  const words = `the hub answers ${status}${said ? `: ${said.slice(0, 300)}` : ""}`;
  const of = { status };
  const page = `${settings.endpoint}/${id}`;
  const login = `set HF_TOKEN to a token of an account that may read it (${settings.endpoint}/settings/tokens), or run "hf auth login"`;
  if (kind === "GatedRepo" || (status === 403 && kind === null))
    return new HubError(
      "ACCESS",
      `${what}: ${words}. Access is granted on request: accept the terms at ${page}, then ${settings.token === null ? login : "try again; the token in use must belong to that account and may need the right to read gated models"}`,
      of,
    );
  if (status === 401 || kind === "RepoNotFound")
    return new HubError(
      status === 401 ? "ACCESS" : "NOT_FOUND",
      settings.token === null
        ? `${what}: ${words}. There is no such public model: check the name at ${page}; if it is private, ${login}`
        : `${what}: ${words}. There is no such model, or the token in use may not read it, or is not valid: check the name at ${page}, and HF_TOKEN`,
      of,
    );
  if (kind === "RevisionNotFound")
    return new HubError("NOT_FOUND", `${what}: ${words}. There is no revision "${revision}": see ${page}/refs`, of);
  if (status === 404)
    return new HubError(
      "NOT_FOUND",
      `${what}: ${words}. There is no such model, revision ("${revision}") or file: check the name at ${page}`,
      of,
    );
  const wrong = new HubError("SERVER", `${what}: ${words}; try again later`, of);
  const passes = status === 408 || status === 425 || status === 429 || status >= 500;
  return passes ? mayPass(wrong, retryAfter(answer.header("retry-after"))) : wrong;
}
