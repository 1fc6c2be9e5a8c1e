"""Every row of the table of primitives, in every dtype that it accepts, in every layout.

A case is a row's name, its inputs, its attributes as Nabla writes them, and what PyTorch gives. Inputs are views of
arrays in a pool that cases share; the views are given as movement operations that the test records.
Where PyTorch lacks an operation in a dtype, it is computed in a wider one (64-bit integers, then the low 32 bits;
float32 for 16-bit floats) and converted.
"""

import itertools
import math

import torch

from .encoding import DTYPES, FLOATS, INTEGERS, record, save

NUMBERS = FLOATS + INTEGERS
BITS = INTEGERS + ["bool"]
ANY = NUMBERS + ["bool"]

LAYOUTS = ["contiguous", "strided", "broadcast", "0-d", "empty", "special"]

# ---- inputs -----------------------------------------------------------------------------------------------------

INF, NAN = math.inf, math.nan
SPECIAL = [NAN, INF, -INF, 0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.0]


def values(kind, dtype, shape, salt):
    """Deterministic numbers of a kind, exact in `dtype`."""
    generator = torch.Generator().manual_seed(sum(map(ord, kind + dtype + salt)) * 1009 + math.prod(shape))
    normal = torch.randn(shape, generator=generator, dtype=torch.float64)
    whole = torch.randint(0, 1 << 30, shape, generator=generator)
    target = DTYPES[dtype]
    if kind == "bits":  # the pattern of an ordinary number
        source = {4: torch.float32, 2: torch.float16, 8: torch.float64, 1: torch.uint8}[target.itemsize]
        pattern = (normal * 3).to(source) if source.is_floating_point else whole.remainder(2 if dtype == "bool" else 256).to(source)
        return pattern.view(target) if math.prod(shape) else pattern.to(target)
    if dtype == "bool":
        return whole.remainder(2).to(torch.bool)
    if target.is_floating_point:
        x = normal * 2
        if kind == "positive":
            x = x.abs() + 0.125
        elif kind == "nonzero":
            x = torch.where(x.abs() < 0.25, x + 0.5, x)
        elif kind == "small":
            x = x.clamp(-3, 3)
        elif kind == "ties":
            x = (x * 2).round() / 2
        return x.to(target)
    if kind == "shift":
        return whole.remainder(2 * target.itemsize * 8).to(target)
    if kind == "large":
        return whole.to(torch.int32).to(target) if dtype != "uint32" else (whole * 3).to(target)
    x = whole.remainder(17)
    if dtype == "int32":
        x = x - 8
    if kind == "positive":
        x = x.abs() + 1
    elif kind == "nonzero":
        x = torch.where(x == 0, 3, x)
    elif kind == "small":
        x = x.abs().remainder(4)
    return x.to(target)


class Pool:
    """Stored arrays and the views on them."""

    def __init__(self):
        self.arrays = []
        self.places = {}

    def place(self, x):
        entry = record(x)
        key = (entry["dtype"], tuple(entry["shape"]), entry["data"])
        if key not in self.places:
            self.places[key] = len(self.arrays)
            self.arrays.append(entry)
        return self.places[key]

    def input(self, make, shape, layout, which=0):
        """`make(stored shape)` gives the stored array. Returns the view and its description."""
        if layout == "strided" and len(shape):
            # Stored transposed, with every second row from the end, and one column cut away.
            first, rest = shape[-1], list(shape[-2::-1])
            base = make([2 * first + 1, *[n + 1 for n in rest]])
            start = [2 * first - 1, *[1 for _ in rest]]
            taken = [first, *rest]
            view = base[tuple([slice(1, None, 2), *[slice(1, None) for _ in rest]])].flip(0)
            axes = list(range(len(shape)))[::-1]
            steps = [-2, *[1 for _ in rest]]
            operations = [["slice", {"start": start if first else [0, *start[1:]], "step": steps, "shape": taken}]]
            if len(shape) > 1:
                operations.append(["permute", {"axes": axes}])
            return view.permute(axes), {"array": self.place(base), "view": operations}
        if layout == "broadcast" and len(shape):
            stored = [1 if (i + which) % 2 == (len(shape) + 1) % 2 else n for i, n in enumerate(shape)]
            base = make(stored)
            return base.expand(shape), {"array": self.place(base), "view": [["expand", {"shape": list(shape)}]]}
        base = make(list(shape))
        return base, {"array": self.place(base)}


POOL = Pool()
CASES = []


VIEWS = []
VIEW_PLACES = {}


def view_place(view):
    key = repr(view)
    if key not in VIEW_PLACES:
        VIEW_PLACES[key] = len(VIEWS)
        VIEWS.append(view)
    return VIEW_PLACES[key]


def emit(row, dtype, layout, inputs, attrs, out, variant=None, signed_zero=False):
    """Inputs are numbers of views, the output is the number of an array."""
    out = out.to(torch.int32) if out.dtype == torch.int64 else out
    case = {"row": row, "dtype": dtype, "layout": layout, "inputs": [view_place(v) for v in inputs], "attrs": attrs, "output": POOL.place(out)}
    if variant is not None:
        case["variant"] = variant
    if signed_zero:
        case["signedZero"] = True
    CASES.append(case)


def widened(f, dtype):
    """f, computed in a wider type where PyTorch has no kernel for `dtype`; the result in `dtype` (bool stays)."""
    target = DTYPES[dtype]

    def narrow(y):
        if y.dtype in (target, torch.bool):
            return y
        if dtype == "uint32":
            y = y & 0xFFFFFFFF
        return y.to(target)

    def run(*xs):
        try:
            return narrow(f(*xs))
        except (NotImplementedError, RuntimeError):
            wide = torch.int64 if not target.is_floating_point else torch.float32
            return narrow(f(*[x.to(wide) if x.dtype == target else x for x in xs]))

    return run


# ---- elementwise ------------------------------------------------------------------------------------------------

SHAPE = {"contiguous": [3, 7], "strided": [3, 7], "broadcast": [3, 7], "0-d": [], "empty": [0, 7]}

UNARY = {
    # row: (function, kind of numbers, dtypes, whether −0 is distinguished)
    "neg": (torch.neg, "any", NUMBERS, True),
    "abs": (torch.abs, "any", NUMBERS, True),
    "sign": (torch.sign, "any", NUMBERS, False),
    "sqrt": (torch.sqrt, "positive", FLOATS, True),
    "exp": (torch.exp, "any", FLOATS, False),
    "log": (torch.log, "positive", FLOATS, False),
    "log1p": (torch.log1p, "positive", FLOATS, False),
    "expm1": (torch.expm1, "any", FLOATS, False),
    "sin": (torch.sin, "any", FLOATS, True),
    "cos": (torch.cos, "any", FLOATS, False),
    "atan": (torch.atan, "any", FLOATS, True),
    "tanh": (torch.tanh, "any", FLOATS, True),
    "erf": (torch.erf, "any", FLOATS, False),
    "floor": (torch.floor, "ties", FLOATS, True),
    "ceil": (torch.ceil, "ties", FLOATS, True),
    "trunc": (torch.trunc, "ties", FLOATS, True),
    "round": (torch.round, "ties", FLOATS, True),
    "not": (torch.bitwise_not, "large", BITS, False),
    "detach": (lambda x: x.clone(), "any", ANY, True),
}

BINARY = {
    "add": (torch.add, "any", "any", NUMBERS),
    "sub": (torch.sub, "any", "any", NUMBERS),
    "mul": (torch.mul, "large", "large", NUMBERS),
    "div": (torch.div, "any", "nonzero", FLOATS),
    "pow": (torch.pow, "positive", "any", NUMBERS),
    "max": (torch.maximum, "any", "any", ANY),
    "min": (torch.minimum, "any", "any", ANY),
    "idiv": (lambda a, b: torch.div(a, b, rounding_mode="floor"), "large", "nonzero", INTEGERS),
    "mod": (torch.remainder, "large", "nonzero", NUMBERS),
    "and": (torch.bitwise_and, "large", "large", BITS),
    "or": (torch.bitwise_or, "large", "large", BITS),
    "xor": (torch.bitwise_xor, "large", "large", BITS),
    "shl": (torch.bitwise_left_shift, "large", "shift", INTEGERS),
    "shr": (torch.bitwise_right_shift, "large", "shift", INTEGERS),
    "lt": (torch.lt, "ties", "ties", ANY),
    "le": (torch.le, "ties", "ties", ANY),
    "eq": (torch.eq, "ties", "ties", ANY),
}


def special_pairs(dtype):
    pairs = list(itertools.product(SPECIAL, SPECIAL))
    return [torch.tensor([p[i] for p in pairs], dtype=DTYPES[dtype]) for i in (0, 1)]


def elementwise():
    for row, (f, kind, dtypes, zeros) in UNARY.items():
        for dtype in dtypes:
            run = widened(f, dtype)
            for layout, shape in SHAPE.items():
                x, place = POOL.input(lambda s: values(kind, dtype, s, ""), shape, layout)
                emit(row, dtype, layout, [place], {}, run(x))
            if dtype in FLOATS and row != "sign":
                x = torch.tensor([*SPECIAL, -0.3, 100.0, -100.0, 0.49999, 7.5], dtype=DTYPES[dtype])
                emit(row, dtype, "special", [{"array": POOL.place(x)}], {}, run(x), signed_zero=zeros)
    for row, (f, first, second, dtypes) in BINARY.items():
        for dtype in dtypes:
            run = widened(f, dtype)
            for layout, shape in SHAPE.items():
                x, px = POOL.input(lambda s: values(first, dtype, s, "a"), shape, layout, 0)
                y, py = POOL.input(lambda s: values(second, dtype, s, "b"), shape, layout, 1)
                emit(row, dtype, layout, [px, py], {}, run(x, y))
            if dtype in FLOATS:
                x, y = special_pairs(dtype)
                places = [{"array": POOL.place(x)}, {"array": POOL.place(y)}]
                emit(row, dtype, "special", places, {}, run(x, y), signed_zero=row in ("mul", "div"))
    x = torch.tensor([2, -1, 1, 0, -2, -3, 7, 46341], dtype=torch.int32)
    y = torch.tensor([-1, -3, -2, -0, -1, 3, 0, 2], dtype=torch.int32)
    emit("pow", "int32", "contiguous", [{"array": POOL.place(x)}, {"array": POOL.place(y)}], {}, x.pow(y), "negative exponents, wrapping")
    low = torch.tensor([-(2**31), -(2**31), 2**31 - 1], dtype=torch.int32)
    one = torch.tensor([1, 1, -1], dtype=torch.int32)
    for row, f in [("add", torch.add), ("sub", torch.sub), ("mul", torch.mul)]:
        emit(row, "int32", "contiguous", [{"array": POOL.place(low)}, {"array": POOL.place(low)}], {}, f(low, low), "wrapping")
    emit("sub", "int32", "contiguous", [{"array": POOL.place(low)}, {"array": POOL.place(one)}], {}, low - one, "wrapping at the ends")
    x = torch.tensor([-5, 5, -1, 1 << 30, 5], dtype=torch.int32)
    y = torch.tensor([40, -1, 31, 1, 32], dtype=torch.int32)
    for row, f in [("shl", torch.bitwise_left_shift), ("shr", torch.bitwise_right_shift)]:
        emit(row, "int32", "contiguous", [{"array": POOL.place(x)}, {"array": POOL.place(y)}], {}, f(x, y), "negative and wide shifts")

    for dtype in ANY:
        for layout, shape in SHAPE.items():
            c, pc = POOL.input(lambda s: values("any", "bool", s, "c"), shape, layout, 1)
            x, px = POOL.input(lambda s: values("any", dtype, s, "a"), shape, layout, 0)
            y, py = POOL.input(lambda s: values("any", dtype, s, "b"), shape, layout, 1)
            emit("where", dtype, layout, [pc, px, py], {}, torch.where(c, x, y))
        if dtype in FLOATS:
            x, y = special_pairs(dtype)
            c = torch.arange(len(x)) % 2 == 0
            emit("where", dtype, "special", [{"array": POOL.place(t)} for t in (c, x, y)], {}, torch.where(c, x, y), signed_zero=True)

    for dtype in ANY:
        for to in ANY:
            for layout, shape in SHAPE.items():
                # Within every range: a negative number has no agreed unsigned meaning.
                kind = "positive" if to in ("uint32", "uint8") and dtype in FLOATS else "large" if dtype in INTEGERS else "any"
                x, place = POOL.input(lambda s: values(kind, dtype, s, ""), shape, layout)
                emit("cast", dtype, layout, [place], {"dtype": to}, x.to(DTYPES[to]), to)
            if dtype in FLOATS and (to in FLOATS or to == "bool"):
                x = torch.tensor([*SPECIAL, 65519.0, 65520.0, 1e30, -1e30, 3.3895314e38], dtype=torch.float64).to(DTYPES[dtype])
                emit("cast", dtype, "special", [{"array": POOL.place(x)}], {"dtype": to}, x.to(DTYPES[to]), to, signed_zero=to != "bool")
    for dtype in ANY:
        for to in ANY:
            if DTYPES[to].itemsize != DTYPES[dtype].itemsize or (to == "bool" and dtype != "bool"):
                continue
            for layout, shape in SHAPE.items():
                x, place = POOL.input(lambda s: values("bits", dtype, s, ""), shape, layout)
                emit("bitcast", dtype, layout, [place], {"dtype": to}, x.contiguous().view(DTYPES[to]), to)
            if dtype in FLOATS:
                x = torch.tensor([INF, -INF, 0.0, -0.0, 1.0, -1.0], dtype=DTYPES[dtype])
                emit("bitcast", dtype, "special", [{"array": POOL.place(x)}], {"dtype": to}, x.view(DTYPES[to]), to, signed_zero=True)


# ---- leaves -----------------------------------------------------------------------------------------------------


def leaves():
    for dtype in ANY:
        for layout, shape in SHAPE.items():
            x, place = POOL.input(lambda s: values("any", dtype, s, ""), shape, layout)
            emit("buffer", dtype, layout, [place], {}, x.clone())
        number = {"bool": 1, "uint8": 200, "uint32": 4000000000, "int32": -7}.get(dtype, -2.40625)
        for row in ("const", "scalar"):
            emit(row, dtype, "0-d", [], {"value": number, "dtype": dtype}, torch.tensor(number, dtype=DTYPES[dtype]))
            if dtype in FLOATS:
                for text in ("NaN", "Infinity", "-Infinity", "-0"):
                    x = torch.tensor(float(text), dtype=DTYPES[dtype])
                    emit(row, dtype, "special", [], {"value": text, "dtype": dtype}, x, text, signed_zero=True)
        if dtype in FLOATS:
            x = torch.tensor(SPECIAL, dtype=DTYPES[dtype])
            emit("buffer", dtype, "special", [{"array": POOL.place(x)}], {}, x, signed_zero=True)
    for shape, layout in [([2, 3, 4], "contiguous"), ([2, 0], "empty")]:
        for axis in range(len(shape)):
            n = torch.arange(shape[axis], dtype=torch.int32).reshape([-1 if i == axis else 1 for i in range(len(shape))])
            emit("iota", "int32", layout, [], {"shape": shape, "axis": axis}, n.expand(shape), f"axis {axis}")


# ---- movement ---------------------------------------------------------------------------------------------------

CUBE = {"contiguous": [2, 3, 5], "strided": [2, 3, 5], "broadcast": [2, 3, 5], "0-d": [], "empty": [2, 0, 5]}


def window(x, axes, size, stride, dilation):
    for axis, n, step, gap in zip(axes, size, stride, dilation):
        count = max(0, (x.shape[axis] - gap * (n - 1) - 1) // step + 1)
        at = torch.arange(count)[:, None] * step + torch.arange(n)[None, :] * gap
        taken = x.index_select(axis, at.reshape(-1))
        x = taken.reshape(*x.shape[:axis], count, n, *x.shape[axis + 1 :]).movedim(axis + 1, -1)
    return x


def fold(x, axes, size, stride, dilation, length):
    shape = list(x.shape[: x.dim() - len(axes)])
    for axis, n in zip(axes, length):
        shape[axis] = n
    place = window(torch.arange(math.prod(shape)).reshape(shape), axes, size, stride, dilation)
    out = torch.zeros(math.prod(shape), dtype=x.dtype)
    return out.index_add(0, place.reshape(-1), x.reshape(-1)).reshape(shape)


def pad(x, low, high, interior, value):
    shape = [a + n + max(0, n - 1) * k + b for a, n, k, b in zip(low, x.shape, interior, high)]
    out = torch.full(shape, value, dtype=torch.float64 if x.dtype.is_floating_point else torch.int64).to(x.dtype)
    at = tuple(slice(a, a + max(0, n - 1) * (k + 1) + 1 if n else a, k + 1) for a, n, k in zip(low, x.shape, interior))
    out[at] = x
    return out


def strided(x, start, step, shape):
    for axis, (a, s, n) in enumerate(zip(start, step, shape)):
        x = x.index_select(axis, a + s * torch.arange(n))
    return x


def select(x, f):
    """Selection through 64-bit carriers, for dtypes that index_select lacks."""
    try:
        return f(x)
    except (NotImplementedError, RuntimeError):
        return f(x.to(torch.int64)).to(x.dtype)


def one_input(row, dtype, layout, shape, attrs, f, variant=None, kind="any"):
    x, place = POOL.input(lambda s: values(kind, dtype, s, ""), shape, layout)
    emit(row, dtype, layout, [place], attrs, select(x, f), variant)


def special_cube(dtype):
    x = torch.tensor(SPECIAL + [7.0, -7.0, 0.25, 4.0, -4.0], dtype=DTYPES[dtype])
    return x.reshape(2, 3, 3)


def movement():
    for dtype in ANY:
        for layout, shape in CUBE.items():
            rank = len(shape)
            most = 1 if layout == "broadcast" else 2 if layout == "strided" else 3
            targets = {0: [[1, 1], []], 3: [[0, 10], [5, 2, 0]] if layout == "empty" else [[30], [5, 2, 3], [1, 6, 5]]}[rank]
            for to in targets[:most]:
                one_input("reshape", dtype, layout, shape, {"shape": to}, lambda x: x.reshape(to), str(to))
            for axes in [[]] if rank == 0 else [[2, 0, 1], [0, 2, 1], [2, 1, 0]]:
                one_input("permute", dtype, layout, shape, {"axes": axes}, lambda x: x.permute(axes).contiguous(), str(axes))
            ones = [[]] if rank == 0 else [[2, 1, 5], [1, 3, 1], [1, 1, 1]] if layout != "empty" else [[1, 0, 5]]
            for stored in ones[:most]:
                grown = [] if rank == 0 else ([4, 0, 5] if layout == "empty" else [n if n > 1 else 3 + i for i, n in enumerate(stored)])
                one_input("expand", dtype, layout, stored, {"shape": grown}, lambda x: x.expand(grown).contiguous(), str(stored))
            cuts = [([], [], [])] if rank == 0 else [([1, 2, 4], [1, -1, -2], [1, 3, 3]), ([0, 0, 1], [1, 2, 3], [2, 2, 2]), ([0, 1, 0], [1, 1, 1], [2, 0, 5])]
            if layout == "empty":
                cuts = [([1, 0, 4], [-1, 1, -2], [2, 0, 3])]
            for start, step, taken in cuts:
                attrs = {"start": start, "step": step, "shape": taken}
                one_input("slice", dtype, layout, shape, attrs, lambda x: strided(x, start, step, taken), str(step))
            pads = [([], [], [], 0)] if rank == 0 else [([1, 0, 2], [0, 1, 1], [0, 0, 0], 1), ([0, 0, 1], [1, 0, 0], [1, 2, 3], 0), ([0, 0, 0], [0, 0, 3], [0, 1, 0], 1)]
            for low, high, interior, value in pads[:most]:
                attrs = {"low": low, "high": high, "interior": interior, "value": value}
                one_input("pad", dtype, layout, shape, attrs, lambda x: pad(x, low, high, interior, value), str(interior))
            windows = [([], [], [], [])] if rank == 0 else [([2], [2], [1], [1]), ([2], [3], [2], [2]), ([1, 2], [2, 2], [1, 3], [1, 1])]
            if layout == "empty":
                windows = [([2], [2], [2], [1]), ([2], [6], [1], [1])]
            for axes, size, stride, dilation in windows[:most]:
                attrs = {"axes": axes, "size": size, "stride": stride, "dilation": dilation}
                one_input("window", dtype, layout, shape, attrs, lambda x: window(x, axes, size, stride, dilation), str(size))
            if rank:
                inputs = [POOL.input(lambda s: values("any", dtype, s, salt), part, layout, i) for i, (salt, part) in enumerate([("a", shape), ("b", [2, 2, 5]), ("c", shape)])]
                out = torch.cat([x for x, _ in inputs], 1)
                emit("concat", dtype, layout, [p for _, p in inputs], {"axis": 1}, out)
                x, y = POOL.input(lambda s: values("any", dtype, s, "a"), shape, layout, 1), POOL.input(lambda s: values("any", dtype, s, "b"), shape, layout, 0)
                for axis in (0, 2):
                    emit("concat", dtype, layout, [x[1], y[1]], {"axis": axis}, torch.cat([x[0], y[0]], axis), f"axis {axis}")
        if dtype in FLOATS:
            x = special_cube(dtype)
            place = [{"array": POOL.place(x)}]
            emit("reshape", dtype, "special", place, {"shape": [18]}, x.reshape(18), signed_zero=True)
            emit("permute", dtype, "special", place, {"axes": [2, 0, 1]}, x.permute(2, 0, 1), signed_zero=True)
            emit("expand", dtype, "special", [{"array": POOL.place(x[:, :1])}], {"shape": [2, 4, 3]}, x[:, :1].expand(2, 4, 3), signed_zero=True)
            emit("slice", dtype, "special", place, {"start": [1, 2, 2], "step": [-1, -1, -2], "shape": [2, 3, 2]}, strided(x, [1, 2, 2], [-1, -1, -2], [2, 3, 2]), signed_zero=True)
            for value in ("NaN", "-0", "-Infinity", 1):
                attrs = {"low": [1, 0, 0], "high": [0, 0, 1], "interior": [0, 1, 0], "value": value}
                emit("pad", dtype, "special", place, attrs, pad(x, [1, 0, 0], [0, 0, 1], [0, 1, 0], float(value)), str(value), signed_zero=True)
            emit("window", dtype, "special", place, {"axes": [2], "size": [2], "stride": [1], "dilation": [1]}, window(x, [2], [2], [1], [1]), signed_zero=True)
            emit("concat", dtype, "special", place * 2, {"axis": 1}, torch.cat([x, x], 1), signed_zero=True)
    for dtype in NUMBERS:
        run = widened(lambda x: fold(x, **arguments), dtype)
        if dtype in ("float16", "bfloat16"):  # summed wide, rounded once
            run = lambda x: fold(x.float(), **arguments).to(x.dtype)
        for layout, shape in [(l, s) for l in ("contiguous", "strided", "broadcast") for s in ([2, 3, 4, 3], [2, 3, 2, 2, 2])] + [("empty", [0, 3, 4, 3]), ("empty", [2, 3, 0, 3]), ("0-d", [])]:
            if len(shape) == 0:
                arguments = dict(axes=[], size=[], stride=[], dilation=[], length=[])
            elif len(shape) == 5:
                arguments = dict(axes=[1, 2], size=[2, 2], stride=[1, 2], dilation=[2, 1], length=[5, 5])
            else:
                arguments = dict(axes=[2], size=[3], stride=[2], dilation=[1], length=[2 if shape[2] == 0 else 9])
            x, place = POOL.input(lambda s: values("any", dtype, s, ""), shape, layout)
            emit("fold", dtype, layout, [place], arguments, run(x), str(shape))
        if dtype in FLOATS:
            arguments = dict(axes=[1], size=[3], stride=[1], dilation=[1], length=[5])
            x = special_cube(dtype)
            emit("fold", dtype, "special", [{"array": POOL.place(x)}], arguments, fold(x.double(), **arguments).to(x.dtype))


# ---- reductions and prefixes ------------------------------------------------------------------------------------


def summed(x, axes):
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    return wide.sum(axes, dtype=wide.dtype).to(x.dtype)


def product(x, axes):
    wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
    for axis in sorted(axes, reverse=True):
        wide = wide.prod(axis, dtype=wide.dtype)
    return wide.to(x.dtype)


def prefix(f):
    def run(x, axis):
        wide = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
        return f(wide, axis).to(x.dtype)

    return run


def reductions():
    table = {
        "sum": (summed, NUMBERS, "any"),
        "prod": (product, NUMBERS, "small"),
        "reduceMax": (lambda x, axes: torch.amax(x, axes), ANY, "any"),
        "reduceMin": (lambda x, axes: torch.amin(x, axes), ANY, "any"),
    }
    for row, (f, dtypes, kind) in table.items():
        for dtype in dtypes:
            for layout in ("contiguous", "strided", "broadcast"):
                for axes in ([2], [0], [0, 2], [1], [0, 1], [0, 1, 2])[: 6 if layout == "contiguous" else 3]:
                    x, place = POOL.input(lambda s: values(kind, dtype, s, ""), [2, 3, 5], layout)
                    run = widened(lambda x: f(x, axes), dtype)
                    emit(row, dtype, layout, [place], {"axes": axes}, run(x), str(axes))
            for axes in [[2]] if row in ("reduceMax", "reduceMin") else [[2], [1], [0, 1]]:
                x, place = POOL.input(lambda s: values(kind, dtype, s, ""), [2, 0, 5], "empty")
                emit(row, dtype, "empty", [place], {"axes": axes}, widened(lambda x: f(x, axes), dtype)(x), str(axes))
            if dtype in FLOATS:
                x = special_cube(dtype)
                for axes in ([2], [0], [0, 2]):
                    emit(row, dtype, "special", [{"array": POOL.place(x)}], {"axes": axes}, f(x.double(), axes).to(x.dtype), str(axes))
    for row, f in [("argmax", torch.argmax), ("argmin", torch.argmin)]:
        for dtype in ANY:
            run = lambda x, axis: f(x.to(torch.int64) if dtype in ("bool", "uint32") else x, axis).to(torch.int32)
            for layout in ("contiguous", "strided", "broadcast"):
                for axis in range(3):
                    x, place = POOL.input(lambda s: values("ties", dtype, s, ""), [2, 3, 5], layout)
                    emit(row, dtype, layout, [place], {"axis": axis}, first(x, axis, row), f"axis {axis}")
            x, place = POOL.input(lambda s: values("ties", dtype, s, ""), [2, 0, 5], "empty")
            emit(row, dtype, "empty", [place], {"axis": 2}, torch.zeros(2, 0, dtype=torch.int32))
            if dtype in FLOATS:
                x = special_cube(dtype)
                for axis in range(3):
                    emit(row, dtype, "special", [{"array": POOL.place(x)}], {"axis": axis}, run(x, axis), f"axis {axis}")
    table = {
        "cumsum": (prefix(lambda x, axis: x.cumsum(axis, dtype=x.dtype)), "any"),
        "cumprod": (prefix(lambda x, axis: x.cumprod(axis, dtype=x.dtype)), "small"),
        "cummax": (lambda x, axis: x.cummax(axis).values, "any"),
    }
    for row, (f, kind) in table.items():
        for dtype in NUMBERS:
            for layout, shape in [(l, [2, 3, 5]) for l in ("contiguous", "strided", "broadcast")] + [("empty", [2, 0, 5])]:
                for axis in range(3):
                    x, place = POOL.input(lambda s: values(kind, dtype, s, ""), shape, layout)
                    emit(row, dtype, layout, [place], {"axis": axis}, widened(lambda x: f(x, axis), dtype)(x), f"axis {axis}")
            if dtype in FLOATS:
                x = special_cube(dtype)
                for axis in range(3):
                    emit(row, dtype, "special", [{"array": POOL.place(x)}], {"axis": axis}, f(x.double(), axis).to(x.dtype), f"axis {axis}")


def first(x, axis, row):
    """The first extreme position: what PyTorch documents for NumPy's sake but does not promise on ties."""
    order = torch.sort(x.to(torch.float64), dim=axis, descending=row == "argmax", stable=True).indices
    return order.select(axis, 0).to(torch.int32)


# ---- contraction and indexed rows -------------------------------------------------------------------------------


def contraction():
    for dtype in NUMBERS:
        def product_of(a, b):
            if dtype in ("float16", "bfloat16"):
                return (a.float() @ b.float()).to(a.dtype)
            return a @ b

        run = widened(product_of, dtype)
        shapes = [([5, 9], [9, 11]), ([2, 3, 7], [2, 7, 4]), ([2, 2, 3, 5], [2, 2, 5, 1]), ([1, 6], [6, 13]), ([17, 3], [3, 2])]
        for layout in ("contiguous", "strided", "broadcast"):
            for sa, sb in shapes:
                a, pa = POOL.input(lambda s: values("any", dtype, s, "a"), sa, layout, 0)
                b, pb = POOL.input(lambda s: values("any", dtype, s, "b"), sb, layout, 1)
                emit("contract", dtype, layout, [pa, pb], {}, run(a, b), f"{sa} {sb}")
        for sa, sb in [([2, 0], [0, 3]), ([0, 4], [4, 3]), ([0, 2, 3], [0, 3, 2])]:
            a, b = torch.zeros(sa, dtype=DTYPES[dtype]), torch.zeros(sb, dtype=DTYPES[dtype])
            a, b = values("any", dtype, sa, "a"), values("any", dtype, sb, "b")
            emit("contract", dtype, "empty", [{"array": POOL.place(a)}, {"array": POOL.place(b)}], {}, run(a, b), f"{sa} {sb}")
        if dtype in FLOATS:
            a = torch.tensor([[1, NAN, 0], [INF, 1, 0], [0, 2, 3]], dtype=DTYPES[dtype])
            b = torch.tensor([[0, 1], [1, -INF], [INF, 2]], dtype=DTYPES[dtype])
            out = torch.stack([sum(a[:, k].double()[:, None] * b[k].double()[None] for k in range(3))])[0]
            emit("contract", dtype, "special", [{"array": POOL.place(a)}, {"array": POOL.place(b)}], {}, out.to(a.dtype))


def indices(shape, size, salt, unique_axis=None):
    generator = torch.Generator().manual_seed(sum(map(ord, salt)) + math.prod(shape) * 7)
    if unique_axis is None:
        return torch.randint(0, size, shape, generator=generator, dtype=torch.int32)
    keys = torch.rand([size if i == unique_axis else n for i, n in enumerate(shape)], generator=generator)
    return keys.argsort(unique_axis).narrow(unique_axis, 0, shape[unique_axis]).to(torch.int32)


def indexed():
    for dtype in ANY:
        for layout, shape in [(l, [3, 4, 5]) for l in ("contiguous", "strided", "broadcast")] + [("empty", [3, 0, 5])]:
            for axis, m in [(0, 4), (1, 0 if shape[1] == 0 else 6), (2, 2)]:
                x, px = POOL.input(lambda s: values("any", dtype, s, ""), shape, layout, 0)
                taken = [m if i == axis else n for i, n in enumerate(shape)]
                index, pi = POOL.input(lambda s: indices(s, max(1, shape[axis]), "gather"), taken, layout, 1)
                emit("gather", dtype, layout, [px, pi], {"axis": axis}, torch.gather(x, axis, index.long()), f"axis {axis}")
        if dtype in FLOATS:
            x = special_cube(dtype)
            index = indices([2, 5, 3], 3, "special")
            emit("gather", dtype, "special", [{"array": POOL.place(x)}, {"array": POOL.place(index)}], {"axis": 1}, torch.gather(x, 1, index.long()), signed_zero=True)

        for layout, shape in [(l, [3, 4, 5]) for l in ("contiguous", "strided", "broadcast")] + [("empty", [3, 0, 5])]:
            for descending in (False, True):
                for axis in (1, 2):
                    x, place = POOL.input(lambda s: values("ties", dtype, s, ""), shape, layout)
                    order = torch.sort(x.to(torch.int64) if dtype in ("bool", "uint32") else x, dim=axis, descending=descending, stable=True).indices
                    emit("argsort", dtype, layout, [place], {"axis": axis, "descending": descending}, order.to(torch.int32), f"axis {axis} {descending}")
        x, place = POOL.input(lambda s: values("ties", dtype, s, ""), [40], "contiguous")
        order = torch.sort(x.to(torch.int64) if dtype in ("bool", "uint32") else x, stable=True).indices
        emit("argsort", dtype, "contiguous", [place], {"axis": 0, "descending": False}, order.to(torch.int32), "long")
        if dtype in FLOATS:
            x = torch.tensor([1, NAN, -INF, INF, 0.0, -0.0, NAN, 0.0, 1, -1], dtype=DTYPES[dtype])
            for descending in (False, True):
                order = torch.sort(x, stable=True, descending=descending).indices
                emit("argsort", dtype, "special", [{"array": POOL.place(x)}], {"axis": 0, "descending": descending}, order.to(torch.int32), str(descending))

        for layout, shape in CUBE.items():
            if layout == "0-d":
                one_input("dynamicSlice", dtype, layout, [], {"shape": []}, lambda x: x.clone())
                x, px = POOL.input(lambda s: values("any", dtype, s, "a"), [], layout)
                y, py = POOL.input(lambda s: values("any", dtype, s, "b"), [], layout)
                emit("dynamicUpdate", dtype, layout, [px, py], {}, y.clone())
                continue
            for offsets in ([1, 0, 2], [-3, 9, 9]):
                part = [1, 0 if shape[1] == 0 else 2, 3]
                at = [min(max(o, 0), n - p) for o, n, p in zip(offsets, shape, part)]
                region = tuple(slice(a, a + p) for a, p in zip(at, part))
                places = [{"array": POOL.place(torch.tensor(o, dtype=torch.int32))} for o in offsets]
                x, px = POOL.input(lambda s: values("any", dtype, s, "a"), shape, layout, 0)
                y, py = POOL.input(lambda s: values("any", dtype, s, "b"), part, layout, 1)
                emit("dynamicSlice", dtype, layout, [px, *places], {"shape": part}, x[region], str(offsets))
                out = x.clone(memory_format=torch.contiguous_format)
                out[region] = y
                emit("dynamicUpdate", dtype, layout, [px, py, *places], {}, out, str(offsets))
        if dtype in FLOATS:
            x = special_cube(dtype)
            places = [{"array": POOL.place(torch.tensor(o, dtype=torch.int32))} for o in (0, 1, 0)]
            emit("dynamicSlice", dtype, "special", [{"array": POOL.place(x)}, *places], {"shape": [1, 1, 3]}, x[0:1, 1:2], signed_zero=True)
            out = x.clone()
            out[0:1, 1:2] = x[0:1, 0:1]
            emit("dynamicUpdate", dtype, "special", [{"array": POOL.place(x)}, {"array": POOL.place(x[0:1, 0:1])}, *places], {}, out, signed_zero=True)

    for dtype in NUMBERS:
        for mode in ("add", "set", "max"):
            def scattered(x, index, source, axis):
                wide = x.double() if dtype in FLOATS else x.to(torch.int64)
                given = source.to(wide.dtype)
                at = index.long()
                if mode == "add":
                    out = wide.scatter_add(axis, at, given)
                elif mode == "set":
                    out = wide.scatter(axis, at, given)
                else:
                    out = wide.scatter_reduce(axis, at, given, "amax")
                return (out & 0xFFFFFFFF if dtype == "uint32" else out).to(x.dtype)

            for layout, shape in [(l, [3, 4, 5]) for l in ("contiguous", "strided", "broadcast")] + [("empty", [3, 0, 5])]:
                along = [(1, 0 if shape[1] == 0 else 2 if mode == "set" else 7), (0, 3 if mode == "set" else 5), (2, 4)]
                for axis, m in along if layout == "contiguous" else along[:1]:
                    x, px = POOL.input(lambda s: values("any", dtype, s, "a"), shape, layout, 0)
                    taken = [m if i == axis else n for i, n in enumerate(shape)]
                    # `set` with one index twice has no agreed meaning in PyTorch, so there each index occurs once;
                    # a broadcast index would repeat along the axis, so it stays contiguous.
                    source, ps = POOL.input(lambda s: values("any", dtype, s, "b"), taken, layout, 1)
                    if mode == "set":
                        index = indices(taken, shape[axis], "scatter", axis) if math.prod(taken) else torch.zeros(taken, dtype=torch.int32)
                        pi = {"array": POOL.place(index)}
                    else:
                        index, pi = POOL.input(lambda s: indices(s, max(1, shape[axis]), "scatter"), taken, layout, 0)
                    emit("scatter", dtype, layout, [px, pi, ps], {"axis": axis, "mode": mode}, scattered(x, index, source, axis), f"{mode} axis {axis}")
            if dtype in FLOATS:
                x = special_cube(dtype)
                index = indices([2, 3, 3], 3, "special set", 1)
                source = x.flip(0).flip(2)
                emit("scatter", dtype, "special", [{"array": POOL.place(t)} for t in (x, index, source)], {"axis": 1, "mode": mode}, scattered(x, index, source, 1), mode)


def write(folder):
    leaves()
    elementwise()
    movement()
    reductions()
    contraction()
    indexed()
    save(folder / "primitives.json", {"torch": torch.__version__.split("+")[0], "layouts": LAYOUTS, "arrays": POOL.arrays, "views": VIEWS, "cases": CASES})
