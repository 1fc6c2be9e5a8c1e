/**
 * Products of tensors: matmul and its kin, and einsum, which becomes permutations, reshapes and batched contractions.
 */
import type { DType } from "../core/dtype.ts";
import { DTypeError, ShapeError } from "../core/errors.ts";
import { showShape, sizeOf } from "../core/shape.ts";
import { lowered } from "../graph/autocast.ts";
import type { Node } from "../graph/node.ts";
import * as ops from "../graph/ops.ts";
import { diagonalNode } from "./movement.ts";
import { Tensor } from "./tensor.ts";

/** Matrix product of the last two axes; leading axes broadcast, vectors are rows or columns as needed (torch.matmul). */
export function matmul(a: Tensor, b: Tensor): Tensor {
  return new Tensor(ops.matmul(lowered(a.node), lowered(b.node)));
}

function expectAxes(operation: string, x: Tensor, n: number): void {
  if (x.ndim !== n)
    throw new ShapeError(`${operation}: takes tensors of ${n} axes, got ${showShape(x.shape)}; matmul takes any`);
}
/** Product of two matrices. */
export function mm(a: Tensor, b: Tensor): Tensor {
  expectAxes("mm", a, 2);
  expectAxes("mm", b, 2);
  return matmul(a, b);
}
/** Products of two batches of matrices: [batch, m, k] × [batch, k, n]. */
export function bmm(a: Tensor, b: Tensor): Tensor {
  expectAxes("bmm", a, 3);
  expectAxes("bmm", b, 3);
  if (a.shape[0] !== b.shape[0])
    throw new ShapeError(`bmm: batches differ: ${showShape(a.shape)} × ${showShape(b.shape)}`);
  return matmul(a, b);
}
/** Product of a matrix and a vector. */
export function mv(a: Tensor, b: Tensor): Tensor {
  expectAxes("mv", a, 2);
  expectAxes("mv", b, 1);
  return matmul(a, b);
}
/** Σ aᵢ · bᵢ of two vectors. */
export function dot(a: Tensor, b: Tensor): Tensor {
  expectAxes("dot", a, 1);
  expectAxes("dot", b, 1);
  return matmul(a, b);
}
/** aᵢ · bⱼ of two vectors. */
export function outer(a: Tensor, b: Tensor): Tensor {
  expectAxes("outer", a, 1);
  expectAxes("outer", b, 1);
  return new Tensor(ops.mul(ops.unsqueeze(a.node, 1), ops.unsqueeze(b.node, 0)));
}
/** beta · x + alpha · a b. */
export function addmm(
  x: Tensor,
  a: Tensor,
  b: Tensor,
  options: { readonly beta?: number; readonly alpha?: number } = {},
): Tensor {
  const { beta, alpha } = options;
  const product = alpha === undefined ? mm(a, b) : mm(a, b).mul(alpha);
  const base = new Tensor(lowered(x.node));
  return (beta === undefined ? base : base.mul(beta)).add(product);
}

// ---- einsum -------------------------------------------------------------------------------------------------------------

/** A tensor with a label an axis. */
interface Labelled {
  readonly node: Node;
  readonly labels: readonly string[];
}

function parse(equation: string, tensors: readonly Tensor[]): { inputs: string[][]; output: string[] } {
  const [left, right, ...more] = equation.replaceAll(/\s/g, "").split("->");
  if (more.length) throw new ShapeError(`einsum: "${equation}" has more than one "->"`);
  const terms = left.split(",");
  if (terms.length !== tensors.length)
    throw new ShapeError(`einsum: "${equation}" names ${terms.length} operands, ${tensors.length} were given`);
  const split = (term: string): string[] => {
    const labels = term.match(/\.\.\.|[A-Za-z]/g) ?? [];
    if (labels.join("") !== term || labels.filter((l) => l === "...").length > 1)
      throw new ShapeError(
        `einsum: "${term}" in "${equation}": labels are letters, and one "..." may stand for any axes`,
      );
    return labels;
  };
  // "..." stands for the labels 0, 1, … counted from the last axis: aligned on the right, so that they broadcast
  let most = 0;
  const inputs = terms.map((term, i) => {
    const labels = split(term);
    const { shape } = tensors[i];
    const at = labels.indexOf("...");
    const covered = shape.length - (labels.length - (at < 0 ? 0 : 1));
    if (covered < 0 || (at < 0 && covered !== 0))
      throw new ShapeError(`einsum: "${term}" in "${equation}" does not fit operand ${i} of shape ${showShape(shape)}`);
    most = Math.max(most, at < 0 ? 0 : covered);
    return labels.flatMap((l) => (l === "..." ? numbered(covered) : [l]));
  });
  if (right === undefined) {
    const letters = inputs.flat().filter((l) => /[A-Za-z]/.test(l));
    const once = [...new Set(letters)].filter((l) => letters.indexOf(l) === letters.lastIndexOf(l)).sort();
    return { inputs, output: [...numbered(most), ...once] };
  }
  const output = split(right).flatMap((l) => (l === "..." ? numbered(most) : [l]));
  for (const l of output) {
    if (output.indexOf(l) !== output.lastIndexOf(l))
      throw new ShapeError(`einsum: the output of "${equation}" names ${l} twice`);
    if (!inputs.some((labels) => labels.includes(l)))
      throw new ShapeError(`einsum: the output of "${equation}" names ${l}, which no operand has`);
  }
  return { inputs, output };
}
const numbered = (n: number): string[] => Array.from({ length: n }, (_, i) => String(n - 1 - i));

/** Takes the diagonal where a label stands twice. */
function withoutRepeats({ node, labels }: Labelled, equation: string): Labelled {
  for (let i = 0; i < labels.length; i++) {
    const j = labels.indexOf(labels[i], i + 1);
    if (j < 0) continue;
    if (node.shape[i] !== node.shape[j])
      throw new ShapeError(
        `einsum: ${labels[i]} of "${equation}" has sizes ${node.shape[i]} and ${node.shape[j]} in ${showShape(node.shape)}`,
      );
    const rest = labels.filter((_, k) => k !== i && k !== j);
    return withoutRepeats({ node: diagonalNode(node, 0, i, j), labels: [...rest, labels[i]] }, equation);
  }
  return { node, labels };
}

/** x with its axes in the order of `labels`, of which it has a part; missing ones have size 1. */
function arranged({ node, labels: own }: Labelled, labels: readonly string[]): Node {
  const present = labels.filter((l) => own.includes(l));
  const ordered = ops.permute(
    node,
    present.map((l) => own.indexOf(l)),
  );
  let at = 0;
  return ops.reshape(
    ordered,
    labels.map((l) => (own.includes(l) ? ordered.shape[at++] : 1)),
  );
}

function sumOut(x: Labelled, keep: (label: string) => boolean): Labelled {
  const axes = x.labels.flatMap((l, i) => (keep(l) ? [] : [i]));
  if (axes.length === 0) return x;
  return { node: ops.sum(x.node, axes), labels: x.labels.filter(keep) };
}

function contractPair(
  a: Labelled,
  b: Labelled,
  needed: ReadonlySet<string>,
  sizes: ReadonlyMap<string, number>,
): Labelled {
  const x = sumOut(a, (l) => needed.has(l) || b.labels.includes(l));
  const y = sumOut(b, (l) => needed.has(l) || a.labels.includes(l));
  // an axis of size 1 that the other operand has larger broadcasts; it takes no part in the contraction
  const size = (z: Labelled, l: string): number => z.node.shape[z.labels.indexOf(l)];
  const shared = x.labels.filter((l) => y.labels.includes(l));
  const batch = shared.filter((l) => needed.has(l));
  const summed = shared.filter((l) => !needed.has(l));
  const rows = x.labels.filter((l) => !shared.includes(l));
  const columns = y.labels.filter((l) => !shared.includes(l));
  const whole = (z: Labelled, labels: readonly string[]): Node =>
    ops.expandTo(
      arranged(z, labels),
      labels.map((l) => (shared.includes(l) ? (sizes.get(l) as number) : size(z, l))),
    );
  const labels = [...batch, ...rows, ...columns];
  const extent = (list: readonly string[], z: Labelled): number =>
    list.reduce((n, l) => n * (shared.includes(l) ? (sizes.get(l) as number) : size(z, l)), 1);
  const [nb, nr, nk, nc] = [extent(batch, x), extent(rows, x), extent(summed, x), extent(columns, y)];
  const shape = [
    ...batch.map((l) => sizes.get(l) as number),
    ...rows.map((l) => size(x, l)),
    ...columns.map((l) => size(y, l)),
  ];
  if (summed.length === 0) {
    const [u, v] = [arranged(x, labels), arranged(y, labels)];
    return { node: ops.mul(u, v), labels };
  }
  const left = ops.reshape(whole(x, [...batch, ...rows, ...summed]), [nb, nr, nk]);
  const right = ops.reshape(whole(y, [...batch, ...summed, ...columns]), [nb, nk, nc]);
  const flat = batch.length === 0;
  const product = ops.contract(flat ? ops.reshape(left, [nr, nk]) : left, flat ? ops.reshape(right, [nk, nc]) : right);
  return { node: ops.reshape(product, shape), labels };
}

/**
 * Einstein's sum over labelled axes, as "bij,bjk->bik" (torch.einsum): letters, one "..." a term, repeated letters (diagonals),
 * an implicit output (letters that occur once, sorted). Operands are contracted from left to right.
 */
export function einsum(equation: string, ...operands: readonly (Tensor | readonly Tensor[])[]): Tensor {
  const tensors = operands.flat() as Tensor[];
  const { inputs, output } = parse(equation, tensors);
  const nodes = tensors.map(({ node }) => lowered(node));
  const dtype = nodes[0].dtype as DType;
  for (const x of nodes)
    if (x.dtype !== dtype || dtype === "bool")
      throw new DTypeError(`einsum: operands must share a number dtype, got ${nodes.map((y) => y.dtype).join(", ")}`);
  const terms = inputs.map((labels, i) => withoutRepeats({ node: nodes[i], labels }, equation));
  const sizes = new Map<string, number>();
  for (const { node, labels } of terms)
    labels.forEach((l, i) => {
      const n = node.shape[i];
      const known = sizes.get(l) ?? 1;
      if (n !== known && n !== 1 && known !== 1)
        throw new ShapeError(`einsum: label ${l} of "${equation}" has sizes ${known} and ${n}`);
      sizes.set(l, n === 1 ? known : n);
    });
  let out = terms[0];
  for (let i = 1; i < terms.length; i++) {
    const needed = new Set([...output, ...terms.slice(i + 1).flatMap((t) => t.labels)]);
    out = contractPair(out, terms[i], needed, sizes);
  }
  out = sumOut(out, (l) => output.includes(l));
  return new Tensor(arranged(out, output));
}

/** Sums over axes of a that meet axes of b (torch.tensordot): a count of last and first axes, or two lists. */
export function tensordot(
  a: Tensor,
  b: Tensor,
  dims: number | readonly [readonly number[], readonly number[]] = 2,
): Tensor {
  const [left, right] =
    typeof dims === "number"
      ? [Array.from({ length: dims }, (_, i) => a.ndim - dims + i), Array.from({ length: dims }, (_, i) => i)]
      : [dims[0].map((d) => (d < 0 ? d + a.ndim : d)), dims[1].map((d) => (d < 0 ? d + b.ndim : d))];
  if (left.length !== right.length || left.some((l, i) => a.shape[l] !== b.shape[right[i]]))
    throw new ShapeError(
      `tensordot: axes ${showShape(left)} of ${showShape(a.shape)} and ${showShape(right)} of ${showShape(b.shape)} differ`,
    );
  const rows = a.shape.map((_, i) => i).filter((i) => !left.includes(i));
  const columns = b.shape.map((_, i) => i).filter((i) => !right.includes(i));
  const k = sizeOf(left.map((l) => a.shape[l]));
  const x = ops.reshape(ops.permute(lowered(a.node), [...rows, ...left]), [sizeOf(rows.map((r) => a.shape[r])), k]);
  const y = ops.reshape(ops.permute(lowered(b.node), [...right, ...columns]), [
    k,
    sizeOf(columns.map((c) => b.shape[c])),
  ]);
  return new Tensor(
    ops.reshape(ops.contract(x, y), [...rows.map((r) => a.shape[r]), ...columns.map((c) => b.shape[c])]),
  );
}
