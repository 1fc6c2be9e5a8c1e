/** Unpacking gzip by the browser's own means, which work on the thread that asks: that is a worker's, never a page's. */

export const gunzipSync: ((bytes: Uint8Array) => Uint8Array) | null = null;

export async function gunzip(bytes: Uint8Array): Promise<Uint8Array> {
  const unpacked = new Blob([bytes as Uint8Array<ArrayBuffer>]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(unpacked as ConstructorParameters<typeof Response>[0]).arrayBuffer());
}
