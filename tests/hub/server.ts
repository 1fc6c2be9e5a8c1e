/**
 * A server on this machine that answers as huggingface.co does, as far as a download goes: the API's list of files, HEAD and GET
 * of files, large ones (LFS) by a redirect to another origin, which stands for the CDN. Faults are put in by the test.
 */
import { createHash } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface FakeRepository {
  readonly commit: string;
  /** Branches and tags. */
  readonly refs: readonly string[];
  readonly files: Readonly<Record<string, Uint8Array>>;
  /** Who may read it; left out: everybody. */
  readonly token?: string;
  readonly gated?: boolean;
  /** The name that it has now: every request is sent on, relative to the same host. */
  readonly movedTo?: string;
  /** Sizes of large files as the hub tells them, where they are not true. */
  readonly claims?: Readonly<Record<string, number>>;
}

/** What goes wrong with the next request of a path: a status, or a body that ends after so many bytes, or silence. */
export type Fault =
  | { readonly status: number; readonly after?: string }
  | { readonly cut: number }
  | { readonly silent: true }
  | { readonly body: Uint8Array };

export interface Seen {
  readonly at: "hub" | "cdn";
  readonly method: string;
  readonly path: string;
  readonly token: string | undefined;
  readonly range: string | undefined;
}

const isLarge = (name: string): boolean => /\.(safetensors|bin|gguf)$/.test(name);
export const sha256 = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("hex");
export const gitSha1 = (bytes: Uint8Array): string =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const etagOf = (name: string, bytes: Uint8Array): string => (isLarge(name) ? sha256(bytes) : gitSha1(bytes));

const sendJson = (response: ServerResponse, value: unknown): void => {
  response.setHeader("content-type", "application/json");
  response.end(JSON.stringify(value));
};

/** The list with hashes that huggingface_hub asks for. */
const treeOf = ({ files }: FakeRepository): object[] =>
  Object.entries(files).map(([path, bytes]) => ({
    type: "file",
    path,
    size: bytes.length,
    oid: gitSha1(bytes),
    ...(isLarge(path) ? { lfs: { oid: sha256(bytes), size: bytes.length, pointerSize: 130 } } : {}),
  }));

export class FakeHub {
  readonly repositories = new Map<string, FakeRepository>();
  /** By "METHOD path", or "METHOD path of the CDN", what the next requests get; each fault serves once. */
  readonly faults = new Map<string, Fault[]>();
  seen: Seen[] = [];
  endpoint = "";
  #hub: Server;
  #cdn: Server;
  #cdnAddress = "";

  constructor() {
    this.#hub = createServer((request, response) => this.#answer("hub", request, response));
    this.#cdn = createServer((request, response) => this.#answer("cdn", request, response));
  }

  async listen(): Promise<this> {
    const open = (server: Server) =>
      new Promise<string>((resolve) =>
        server.listen(0, "127.0.0.1", () => resolve(`http://127.0.0.1:${(server.address() as AddressInfo).port}`)),
      );
    this.endpoint = await open(this.#hub);
    this.#cdnAddress = await open(this.#cdn);
    return this;
  }

  close(): void {
    for (const server of [this.#hub, this.#cdn]) {
      server.closeAllConnections();
      server.close();
    }
  }

  /** Paths that were asked for with GET since `seen` was last emptied, in order, without their commits. */
  get fetched(): string[] {
    return this.seen.filter(({ method }) => method === "GET").map(({ path }) => path.replace(/[0-9a-f]{40}/, "COMMIT"));
  }

  #answer(at: "hub" | "cdn", request: IncomingMessage, response: ServerResponse): void {
    const path = decodeURIComponent(request.url ?? "/");
    const method = request.method ?? "GET";
    const { authorization, range } = request.headers;
    this.seen.push({ at, method, path, token: authorization, range });
    const [fault, ...rest] = this.faults.get(`${method} ${path}`) ?? [];
    this.faults.set(`${method} ${path}`, rest);
    if (fault && "silent" in fault) return;
    if (fault && "status" in fault) {
      if (fault.after) response.setHeader("retry-after", fault.after);
      response.writeHead(fault.status).end("fault");
      return;
    }
    if (at === "cdn") this.#bytes(path, request, response, fault);
    else this.#hubAnswers(path, request, response, fault);
  }

  #hubAnswers(path: string, request: IncomingMessage, response: ServerResponse, fault: Fault | undefined): void {
    const { authorization } = request.headers;
    const tree = /^\/api\/models\/([^/]+\/[^/]+)\/tree\/([0-9a-f]{40})/.exec(path);
    const api = /^\/api\/models\/([^/]+\/[^/]+)\/revision\/([^?]+)/.exec(path);
    const file = /^\/([^/]+\/[^/]+)\/resolve\/([0-9a-f]{40}|[^/]+)\/(.+)$/.exec(path);
    const [, id, revision, name] = api ?? tree ?? file ?? [];
    const repository = id === undefined ? undefined : this.repositories.get(id);
    const refuse = (status: number, code: string): void => {
      response.setHeader("x-error-code", code);
      response.setHeader("x-error-message", `the message of ${code}`);
      response.writeHead(status).end();
    };
    if (repository?.movedTo) {
      response.writeHead(307, { location: path.replace(id, repository.movedTo) }).end();
      return;
    }
    const allowed = repository?.token === undefined || authorization === `Bearer ${repository.token}`;
    if (!repository) refuse(authorization ? 404 : 401, "RepoNotFound");
    else if (repository.gated && !allowed) refuse(authorization ? 403 : 401, "GatedRepo");
    else if (!allowed) refuse(401, "RepoNotFound");
    else if (revision !== repository.commit && !repository.refs.includes(revision)) refuse(404, "RevisionNotFound");
    else if (api && fault && "body" in fault) response.end(fault.body);
    else if (api) {
      const siblings = Object.keys(repository.files).map((rfilename) => ({ rfilename }));
      sendJson(response, { id, sha: repository.commit, siblings });
    } else if (tree) sendJson(response, treeOf(repository));
    else if (!repository.files[name]) refuse(404, "EntryNotFound");
    else {
      const bytes = repository.files[name];
      response.setHeader("x-repo-commit", repository.commit);
      if (isLarge(name)) {
        response.setHeader("x-linked-etag", `"${sha256(bytes)}"`);
        response.setHeader("x-linked-size", repository.claims?.[name] ?? bytes.length);
        response.setHeader("etag", '"that of the redirect"');
        response.writeHead(302, { location: `${this.#cdnAddress}/${id}/${name}?signature=abc` }).end();
      } else {
        response.setHeader("etag", `"${gitSha1(bytes)}"`);
        this.#bytes(path, request, response, fault, bytes);
      }
    }
  }

  #bytes(
    path: string,
    { method, headers: { range } }: IncomingMessage,
    response: ServerResponse,
    fault: Fault | undefined,
    given?: Uint8Array,
  ): void {
    const [, id, name] = /^\/([^/]+\/[^/]+)\/([^?]+)/.exec(path) ?? [];
    let bytes = given ?? this.repositories.get(id)?.files[name];
    if (!bytes) {
      response.writeHead(404).end();
      return;
    }
    if (fault && "body" in fault) bytes = fault.body;
    const from = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
    if (from >= bytes.length && from > 0) {
      response.writeHead(416).end();
      return;
    }
    const part = bytes.subarray(from);
    const more = range ? { "content-range": `bytes ${from}-${bytes.length - 1}/${bytes.length}` } : {};
    response.writeHead(range ? 206 : 200, { "content-length": part.length, ...more });
    if (method === "HEAD") {
      response.end();
      return;
    }
    if (fault && "cut" in fault) {
      response.write(part.subarray(0, fault.cut), () => setTimeout(() => response.destroy(), 20));
      return;
    }
    response.end(part);
  }
}

/** Bytes without a pattern, the same each time. */
export function noise(length: number, seed = 1): Uint8Array<ArrayBuffer> {
  let x = seed;
  return Uint8Array.from({ length }, () => {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    return x >>> 24;
  });
}
