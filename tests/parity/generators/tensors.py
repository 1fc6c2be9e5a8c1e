"""Operations on tensors, as a user calls them: values, shapes, dtypes and gradients; and the promotion of dtypes.

A case names Nabla's function and its arguments, in which "T0", "T1" … stand for the tensors. Floating inputs are
multiples of 1/32 (stored as bfloat16), results are float64. The gradients are those of Σ seed · output 0.
"""

import itertools
import math

import torch
import torch.nn.functional as F

from .encoding import DTYPES, NAMES, record, save

CASES = []
GENERATOR = torch.Generator().manual_seed(5)


def numbers(*shape, scale=1.0):
    x = torch.randn(shape, generator=GENERATOR, dtype=torch.float64) * scale
    return (x.clamp(-4, 4) * 32).round() / 32


def ints(*values):
    return torch.tensor(values, dtype=torch.int32)


def stored(x):
    return record(x.to(torch.bfloat16) if x.is_floating_point() else x)


def emit(name, call, tensors, f, differentiate=None):
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x for x in tensors]
    result = f(*[x.long() if x.dtype == torch.int32 and index_like(name) else x for x in leaves])
    outputs = list(result) if isinstance(result, (tuple, list)) else [result]
    case = {
        "name": name,
        "call": call,
        "tensors": [stored(x) for x in tensors],
        "outputs": [record(o) for o in outputs],
    }
    first = outputs[0]
    if differentiate is None:
        differentiate = first.requires_grad
    if differentiate:
        seed = numbers(*first.shape)
        wanted = {str(i): x for i, x in enumerate(leaves) if x.requires_grad}
        found = torch.autograd.grad((first * seed).sum(), list(wanted.values()), allow_unused=True)
        case["seed"] = stored(seed)
        case["gradients"] = {key: record(g) for key, g in zip(wanted, found) if g is not None}
    CASES.append(case)


def index_like(name):
    return name in ("gather", "indexSelect", "take", "takeAlongDim", "scatter", "scatterAdd", "indexAdd", "indexCopy", "indexFill", "oneHot", "at")


def elementwise():
    x, y = numbers(3, 4), numbers(3, 4)
    positive = x.abs() + 0.125
    unit = (x / 5).clamp(-0.9, 0.9).mul(32).round() / 32
    for name, f, value in [
        ("neg", torch.neg, x), ("abs", torch.abs, x), ("sign", torch.sign, x), ("sqrt", torch.sqrt, positive), ("exp", torch.exp, x),
        ("log", torch.log, positive), ("log1p", torch.log1p, positive), ("expm1", torch.expm1, x), ("sin", torch.sin, x), ("cos", torch.cos, x),
        ("tan", torch.tan, x), ("asin", torch.asin, unit), ("acos", torch.acos, unit), ("atan", torch.atan, x), ("sinh", torch.sinh, x), ("cosh", torch.cosh, x),
        ("tanh", torch.tanh, x), ("asinh", torch.asinh, x), ("acosh", torch.acosh, positive + 1), ("atanh", torch.atanh, unit), ("erf", torch.erf, x),
        ("erfc", torch.erfc, x), ("floor", torch.floor, x), ("ceil", torch.ceil, x), ("trunc", torch.trunc, x), ("round", torch.round, x),
        ("frac", torch.frac, x), ("relu", torch.relu, x), ("sigmoid", torch.sigmoid, x), ("square", torch.square, x), ("reciprocal", torch.reciprocal, positive),
        ("rsqrt", torch.rsqrt, positive), ("log2", torch.log2, positive), ("log10", torch.log10, positive), ("exp2", torch.exp2, x),
        ("rad2deg", torch.rad2deg, x), ("deg2rad", torch.deg2rad, x), ("logicalNot", torch.logical_not, x), ("isnan", torch.isnan, x),
    ]:
        emit(name, ["T0"], [value], f)
    row = numbers(4)
    row = torch.where(row == 0, 0.5, row)
    column = numbers(3, 1)
    for name, f in [
        ("add", torch.add), ("sub", torch.sub), ("mul", torch.mul), ("div", torch.div), ("maximum", torch.maximum), ("minimum", torch.minimum),
        ("lt", torch.lt), ("le", torch.le), ("gt", torch.gt), ("ge", torch.ge), ("eq", torch.eq), ("ne", torch.ne), ("remainder", torch.remainder),
        ("fmod", torch.fmod), ("floorDivide", torch.floor_divide), ("atan2", torch.atan2), ("logicalAnd", torch.logical_and), ("logicalOr", torch.logical_or),
        ("logicalXor", torch.logical_xor),
    ]:
        # the derivative of a floor is 0, but of a remainder with respect to the divisor it jumps: values only
        differentiate = False if name in ("remainder", "fmod", "floorDivide") else None
        emit(name, ["T0", "T1"], [x, row], f, differentiate)
        emit(name, ["T0", "T1"], [column, row], f, differentiate)
        emit(name, ["T0", 1.5], [x], lambda t: f(t, torch.tensor(1.5, dtype=torch.float64)), differentiate)
    emit("pow", ["T0", "T1"], [positive, row], torch.pow)
    for exponent in (2, 3, -1, 0.5, -0.5, 0, 2.5):
        emit("pow", ["T0", exponent], [positive], lambda t: torch.pow(t, exponent))
    emit("pow", [2, "T0"], [x], lambda t: torch.pow(2, t))
    emit("sub", [1, "T0"], [x], lambda t: 1 - t)
    emit("div", [1, "T0"], [positive], lambda t: 1 / t)
    emit("add", ["T0", "T1", {"alpha": 2}], [x, y], lambda a, b: torch.add(a, b, alpha=2))
    emit("div", ["T0", "T1", {"roundingMode": "trunc"}], [x, row], lambda a, b: torch.div(a, b, rounding_mode="trunc"), False)
    # limits that no number equals: there PyTorch's gradient depends on whether both limits are given
    emit("clamp", ["T0", -0.51, 1.01], [x], lambda t: torch.clamp(t, -0.51, 1.01))
    emit("clamp", ["T0", None, 0.26], [x], lambda t: torch.clamp(t, max=0.26))
    mask = x > 0
    emit("where", ["T2", "T0", "T1"], [x, row, mask], lambda a, b, c: torch.where(c, a, b))
    emit("where", ["T1", "T0", 0], [x, mask], lambda a, c: torch.where(c, a, 0.0))
    emit("maskedFill", ["T0", "T1", 7], [x, mask], lambda a, c: a.masked_fill(c, 7))
    emit("lerp", ["T0", "T1", 0.25], [x, y], lambda a, b: torch.lerp(a, b, 0.25))
    emit("addcmul", ["T0", "T1", "T2", {"value": 0.5}], [x, y, row], lambda a, b, c: torch.addcmul(a, b, c, value=0.5))
    emit("addcdiv", ["T0", "T1", "T2", {"value": 0.5}], [x, y, row], lambda a, b, c: torch.addcdiv(a, b, c, value=0.5))
    emit("isclose", ["T0", "T1"], [x, x + 0.03125 * (torch.arange(12).reshape(3, 4) % 2)], torch.isclose)
    a, b = ints(-7, 7, 5, 12), ints(2, -2, 3, 5)
    for name, f in [
        ("add", torch.add), ("mul", torch.mul), ("div", torch.div), ("floorDivide", torch.floor_divide), ("remainder", torch.remainder), ("fmod", torch.fmod),
        ("bitwiseAnd", torch.bitwise_and), ("bitwiseOr", torch.bitwise_or), ("bitwiseXor", torch.bitwise_xor), ("bitwiseLeftShift", lambda a, b: a << b.abs()),
        ("bitwiseRightShift", lambda a, b: a >> b.abs()),
    ]:
        emit(name, ["T0", "T1"], [a, b.abs() if "Shift" in name else b], f)
    emit("div", ["T0", "T1", {"roundingMode": "trunc"}], [a, b], lambda a, b: torch.div(a, b, rounding_mode="trunc"))


def reductions():
    x = numbers(2, 3, 4)
    cases = [[], [{"dim": 1}], [{"dim": [0, 2]}], [{"dim": -1, "keepdim": True}]]
    for name, f in [
        ("sum", torch.sum), ("mean", torch.mean), ("amax", torch.amax), ("amin", torch.amin), ("var", torch.var), ("std", torch.std), ("logsumexp", torch.logsumexp),
    ]:
        for case in cases:
            options = dict(case[0]) if case else {}
            if name == "logsumexp" and not options:
                continue
            if name in ("amax", "amin") and not options:
                options = {"dim": [0, 1, 2]}
            emit(name, ["T0", *case], [x], lambda t: f(t, **options))
    emit("prod", ["T0", {"dim": 1}], [x], lambda t: torch.prod(t, 1))
    emit("prod", ["T0"], [numbers(5)], torch.prod)
    zeros = numbers(3, 4)
    zeros[0, 1] = zeros[1, 2] = zeros[1, 3] = 0
    emit("prod", ["T0", {"dim": 1}], [zeros], lambda t: torch.prod(t, 1))
    emit("cumprod", ["T0", {"dim": 1}], [zeros], lambda t: torch.cumprod(t, 1))
    emit("var", ["T0", {"dim": 1, "correction": 0}], [x], lambda t: torch.var(t, 1, correction=0))
    for name, f in [("max", torch.max), ("min", torch.min), ("median", torch.median)]:
        emit(name, ["T0"], [numbers(7)], f)
        emit(name, ["T0", {"dim": 1}], [x], lambda t: f(t, 1))
        emit(name, ["T0", {"dim": 2, "keepdim": True}], [x], lambda t: f(t, 2, True))
    for name, f in [("argmax", torch.argmax), ("argmin", torch.argmin)]:
        emit(name, ["T0"], [x], f)
        emit(name, ["T0", {"dim": 1, "keepdim": True}], [x], lambda t: f(t, 1, True))
    for p in (1, 2, 3, 0.5, 0, "Infinity", "-Infinity"):
        value = float(p.replace("Infinity", "inf")) if isinstance(p, str) else p
        emit("norm", ["T0", {"p": p, "dim": 1}], [x], lambda t: torch.linalg.vector_norm(t, value, 1), differentiate=p != 0)
    emit("norm", ["T0"], [x], torch.linalg.vector_norm)
    emit("softmax", ["T0", {"dim": 1}], [x], lambda t: torch.softmax(t, 1))
    emit("logSoftmax", ["T0", {"dim": -1}], [x], lambda t: torch.log_softmax(t, -1))
    for name, f in [("cumsum", torch.cumsum), ("cumprod", torch.cumprod)]:
        for dim in (0, 1, 2):
            emit(name, ["T0", {"dim": dim}], [x], lambda t: f(t, dim))
    emit("cummax", ["T0", {"dim": 2}], [x], lambda t: tuple(torch.cummax(t, 2)))
    emit("diff", ["T0"], [x], torch.diff)
    emit("diff", ["T0", {"n": 2, "dim": 1}], [x], lambda t: torch.diff(t, 2, 1))
    ties = (x * 2).round() / 2
    emit("sort", ["T0"], [ties], lambda t: tuple(torch.sort(t, stable=True)))
    emit("sort", ["T0", {"dim": 1, "descending": True}], [ties], lambda t: tuple(torch.sort(t, dim=1, descending=True, stable=True)))
    emit("argsort", ["T0", {"dim": 0}], [ties], lambda t: torch.argsort(t, dim=0, stable=True))
    emit("topk", ["T0", 2], [x], lambda t: tuple(torch.topk(t, 2)))
    emit("topk", ["T0", 2, {"dim": 1, "largest": False}], [x], lambda t: tuple(torch.topk(t, 2, 1, largest=False)))
    for name, f in [("any", torch.any), ("all", torch.all)]:
        emit(name, ["T0"], [x > 1], f)
        emit(name, ["T0", {"dim": 1}], [x > 0], lambda t: f(t, 1))
    emit("countNonzero", ["T0", {"dim": 1}], [zeros], lambda t: torch.count_nonzero(t, 1))
    emit("sum", ["T0", {"dim": 0}], [torch.tensor([[True, False], [True, True]])], lambda t: t.sum(0))
    emit("sum", ["T0"], [torch.tensor([200, 100], dtype=torch.uint8)], torch.sum)


def movement():
    x = numbers(2, 3, 4)
    for name, arguments, f in [
        ("reshape", [[4, -1]], lambda t: t.reshape(4, -1)), ("flatten", [1], lambda t: t.flatten(1)), ("unflatten", [2, [2, -1]], lambda t: t.unflatten(2, (2, -1))),
        ("unsqueeze", [-1], lambda t: t.unsqueeze(-1)), ("transpose", [0, -1], lambda t: t.transpose(0, -1)), ("permute", [[2, 0, 1]], lambda t: t.permute(2, 0, 1)),
        ("movedim", [0, 2], lambda t: t.movedim(0, 2)), ("expand", [[5, 2, 3, 4]], lambda t: t.expand(5, 2, 3, 4)), ("narrow", [1, 1, 2], lambda t: t.narrow(1, 1, 2)),
        ("select", [1, -1], lambda t: t.select(1, -1)), ("tile", [[2, 1, 3]], lambda t: t.tile(2, 1, 3)), ("repeat", [[2, 1, 1, 2]], lambda t: t.repeat(2, 1, 1, 2)),
        ("repeatInterleave", [2, {"dim": 1}], lambda t: t.repeat_interleave(2, 1)), ("flip", [[0, 2]], lambda t: t.flip(0, 2)),
        ("roll", [[1, -2], [0, 2]], lambda t: t.roll((1, -2), (0, 2))), ("roll", [5], lambda t: t.roll(5)), ("tril", [], torch.tril), ("triu", [1], lambda t: torch.triu(t, 1)),
        ("diagonal", [{"offset": 1, "dim1": 1, "dim2": 2}], lambda t: torch.diagonal(t, 1, 1, 2)), ("unfold", [2, 2, 1], lambda t: t.unfold(2, 2, 1)),
        ("pad", [[1, 2, 0, 1]], lambda t: F.pad(t, (1, 2, 0, 1))), ("pad", [[1, -1], {"value": 3}], lambda t: F.pad(t, (1, -1), value=3)),
        ("pad", [[2, 1], {"mode": "reflect"}], lambda t: F.pad(t, (2, 1), mode="reflect")), ("pad", [[2, 1], {"mode": "replicate"}], lambda t: F.pad(t, (2, 1), mode="replicate")),
        ("pad", [[2, 1], {"mode": "circular"}], lambda t: F.pad(t, (2, 1), mode="circular")),
    ]:
        emit(name, ["T0", *arguments], [x], f)
    emit("squeeze", ["T0", 1], [numbers(2, 1, 3)], lambda t: t.squeeze(1))
    emit("diag", ["T0", 1], [numbers(3)], lambda t: torch.diag(t, 1))
    emit("diag", ["T0"], [numbers(3, 4)], torch.diag)
    emit("trace", ["T0"], [numbers(3, 3)], torch.trace)
    emit("cat", [["T0", "T1"], {"dim": 1}], [numbers(2, 3), numbers(2, 1)], lambda a, b: torch.cat([a, b], 1))
    emit("stack", [["T0", "T1"], {"dim": 1}], [numbers(2, 3), numbers(2, 3)], lambda a, b: torch.stack([a, b], 1))
    emit("split", ["T0", 2, {"dim": 1}], [x], lambda t: t.split(2, 1))
    emit("split", ["T0", [1, 3], {"dim": 2}], [x], lambda t: t.split([1, 3], 2))
    emit("chunk", ["T0", 2, {"dim": 1}], [x], lambda t: t.chunk(2, 1))
    emit("unbind", ["T0", {"dim": 1}], [x], lambda t: t.unbind(1))


def products():
    emit("matmul", ["T0", "T1"], [numbers(3, 4), numbers(4, 2)], torch.matmul)
    emit("matmul", ["T0", "T1"], [numbers(4), numbers(4)], torch.matmul)
    emit("matmul", ["T0", "T1"], [numbers(2, 3, 4), numbers(4)], torch.matmul)
    emit("matmul", ["T0", "T1"], [numbers(4), numbers(2, 4, 3)], torch.matmul)
    emit("matmul", ["T0", "T1"], [numbers(2, 1, 3, 4), numbers(5, 4, 2)], torch.matmul)
    emit("bmm", ["T0", "T1"], [numbers(2, 3, 4), numbers(2, 4, 2)], torch.bmm)
    emit("dot", ["T0", "T1"], [numbers(4), numbers(4)], torch.dot)
    emit("outer", ["T0", "T1"], [numbers(4), numbers(3)], torch.outer)
    emit("addmm", ["T0", "T1", "T2", {"beta": 0.5, "alpha": 2}], [numbers(2), numbers(3, 4), numbers(4, 2)], lambda a, b, c: torch.addmm(a, b, c, beta=0.5, alpha=2))
    for equation, shapes in [
        ("ij,jk->ik", [[2, 3], [3, 4]]), ("bij,bkj->bik", [[2, 3, 4], [2, 5, 4]]), ("ii->i", [[3, 3]]), ("ij->", [[3, 4]]), ("i,j->ij", [[3], [4]]),
        ("...ij,...jk->...ik", [[2, 2, 3], [3, 4]]), ("bhqd,bhkd->bhqk", [[1, 2, 3, 4], [1, 2, 5, 4]]), ("ij,ij->i", [[3, 4], [3, 4]]), ("ijk->kij", [[2, 3, 4]]),
        ("ab,bc,cd->ad", [[2, 3], [3, 4], [4, 2]]), ("ij,k->ik", [[2, 3], [4]]), ("ij,jk", [[2, 3], [3, 4]]),
    ]:
        emit("einsum", [equation, *[f"T{i}" for i in range(len(shapes))]], [numbers(*s) for s in shapes], lambda *t: torch.einsum(equation, *t))
    emit("tensordot", ["T0", "T1", 2], [numbers(2, 3, 4), numbers(3, 4, 5)], lambda a, b: torch.tensordot(a, b, 2))


def indexing():
    x = numbers(3, 4)
    index = torch.tensor([[0, 2, 1], [3, 0, 0], [1, 1, 2]], dtype=torch.int32)
    emit("gather", ["T0", 1, "T1"], [x, index], lambda a, i: torch.gather(a, 1, i))
    emit("takeAlongDim", ["T0", "T1", 1], [x, index], lambda a, i: torch.take_along_dim(a, i, 1))
    emit("indexSelect", ["T0", 1, "T1"], [x, ints(3, 0, 3)], lambda a, i: torch.index_select(a, 1, i))
    emit("take", ["T0", "T1"], [x, ints(11, 0, 5)], torch.take)
    emit("scatter", ["T0", 1, "T1", "T2"], [x, torch.tensor([[0, 2], [3, 0], [1, 2]], dtype=torch.int32), numbers(3, 2)], lambda a, i, s: torch.scatter(a, 1, i, s))
    emit("scatterAdd", ["T0", 1, "T1", "T2"], [x, index, numbers(3, 3)], lambda a, i, s: torch.scatter_add(a, 1, i, s))
    emit("indexAdd", ["T0", 0, "T1", "T2"], [x, ints(2, 0, 2), numbers(3, 4)], lambda a, i, s: torch.index_add(a, 0, i, s))
    emit("indexCopy", ["T0", 0, "T1", "T2"], [x, ints(2, 0), numbers(2, 4)], lambda a, i, s: torch.index_copy(a, 0, i, s))
    emit("oneHot", ["T0", 4], [ints(2, 0, 3)], lambda i: F.one_hot(i, 4))
    emit("at", ["T0", 1], [x], lambda t: t[1])
    emit("at", ["T0", -1, 2], [x], lambda t: t[-1, 2])
    emit("at", ["T0", "T1"], [x, ints(2, 0, 2)], lambda t, i: t[i])
    emit("at", ["T0", "T1", "T2"], [x, ints(2, 0), ints(1, 3)], lambda t, i, j: t[i, j])


def promotion():
    """Result dtypes: [operation, a, axes of a, b, axes of b, result]; b may be a number. int64 counts as int32."""
    rows = []
    names = ["float32", "float64", "float16", "bfloat16", "int32", "uint8", "bool"]
    operations = {"add": torch.add, "mul": torch.mul, "div": torch.div, "lt": torch.lt, "maximum": torch.maximum}

    def name_of(dtype):
        return "int32" if dtype == torch.int64 else NAMES.get(dtype)

    for (operation, f), a, dims in itertools.product(operations.items(), names, (0, 1)):
        x = torch.ones([2] * dims, dtype=DTYPES[a])
        for b, other in itertools.product(names, (0, 1)):
            rows.append([operation, a, dims, b, other, name_of(f(x, torch.ones([2] * other, dtype=DTYPES[b])).dtype)])
        if operation == "maximum":
            continue
        for number in (2, 0.5, True):
            if operation in ("lt",):
                continue
            rows.append([operation, a, dims, number, -1, name_of(f(x, number).dtype)])
    for a in names:
        x = torch.ones(2, dtype=DTYPES[a])
        for operation, f in {"sum": torch.sum, "prod": torch.prod, "exp": torch.exp, "sqrt": torch.sqrt}.items():
            rows.append([operation, a, 1, None, -1, name_of(f(x).dtype)])
    return rows


def write(folder):
    elementwise()
    reductions()
    movement()
    products()
    indexing()
    save(folder / "tensors.json", {"torch": torch.__version__.split("+")[0], "cases": CASES, "promotion": promotion()})
