/**
 * Messages of plain data and typed arrays as text, there and back. Both functions stand alone: their texts are also run
 * in a page.
 */

/** JSON, with what JSON lacks as objects of one key that begins with "$". */
export function encodeMessage(message: unknown): string {
  return JSON.stringify(message, (_, value) => {
    if (typeof value === "number" && (!Number.isFinite(value) || Object.is(value, -0)))
      return { $number: Object.is(value, -0) ? "-0" : String(value) };
    if (!ArrayBuffer.isView(value)) return value;
    const bytes = new Uint8Array(value.buffer, value.byteOffset, value.byteLength);
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    return { $array: value.constructor.name, data: btoa(text) };
  });
}

export function decodeMessage(text: string): unknown {
  return JSON.parse(text, (_, value) => {
    if (typeof value !== "object" || value === null) return value;
    if ("$number" in value) return Number(value.$number);
    if (!("$array" in value)) return value;
    const data = atob(value.data);
    const bytes = new Uint8Array(data.length);
    for (let i = 0; i < data.length; i++) bytes[i] = data.charCodeAt(i);
    const Kind = (globalThis as unknown as Record<string, new (buffer: ArrayBuffer) => unknown>)[value.$array];
    return new Kind(bytes.buffer);
  });
}
