/** How Node's console shows objects of ours. */

/** Objects of this class are shown as `toString` writes them. */
export function printedByNode(type: { readonly prototype: object }): void {
  Object.defineProperty(type.prototype, Symbol.for("nodejs.util.inspect.custom"), {
    value(this: object): string {
      return this.toString();
    },
  });
}
