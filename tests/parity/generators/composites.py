"""The composites, forward and gradient, in float64: the truth that every floating dtype is compared with.

Numbers that go in are multiples of 1/32 within ±4, which float64, float32, float16 and bfloat16 all hold exactly; they
are stored as bfloat16. The gradients are those of Σ seed · output. Images are PyTorch's [N, C, …].
"""

import torch
import torch.nn.functional as F

from .encoding import record, save

CASES = []
GENERATOR = torch.Generator().manual_seed(20240607)


def numbers(*shape, low=-4.0, high=4.0, scale=1.0):
    x = torch.randn(shape, generator=GENERATOR, dtype=torch.float64) * scale
    return (x.clamp(low, high) * 32).round() / 32


def emit(name, inputs, options, f, constants=None, differentiate=None):
    """`inputs` are floating; `constants` are given to f as they are. f returns a tensor or a dictionary of tensors."""
    leaves = {key: value.clone().requires_grad_() for key, value in inputs.items()}
    outputs = f(**leaves, **(constants or {}))
    if not isinstance(outputs, dict):
        outputs = {"y": outputs}
    first = next(iter(outputs.values()))
    seed = numbers(*first.shape)
    wanted = list(leaves) if differentiate is None else differentiate
    gradients = torch.autograd.grad((first * seed).sum(), [leaves[key] for key in wanted]) if wanted else []
    CASES.append({
        "name": name,
        "options": options,
        "inputs": {key: record(value.to(torch.bfloat16)) for key, value in inputs.items()},
        "constants": {key: record(value) for key, value in (constants or {}).items()},
        "seed": record(seed.to(torch.bfloat16)),
        "outputs": {key: record(value) for key, value in outputs.items()},
        "gradients": {key: record(value) for key, value in zip(wanted, gradients)},
    })


def activations():
    spread = torch.tensor([-4, -3, -2, -1, -0.5, -0.03125, 0.03125, 0.5, 1, 2, 3, 4], dtype=torch.float64)
    for x in (numbers(3, 7), spread):
        emit("relu", {"x": x}, {}, torch.relu)
        emit("sigmoid", {"x": x}, {}, lambda x: torch.sigmoid(x))
        emit("silu", {"x": x}, {}, lambda x: F.silu(x))
        emit("gelu", {"x": x}, {"approximate": "none"}, lambda x: F.gelu(x))
        emit("gelu", {"x": x}, {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh"))
    large = torch.tensor([-1000.0, -104, -64, 0, 64, 104, 1000], dtype=torch.float64)
    for name, f in [("sigmoid", torch.sigmoid), ("silu", F.silu), ("gelu", F.gelu), ("relu", torch.relu)]:
        emit(name, {"x": large}, {"approximate": "none"} if name == "gelu" else {}, lambda x: f(x))
    emit("gelu", {"x": large}, {"approximate": "tanh"}, lambda x: F.gelu(x, approximate="tanh"))


def softmaxes():
    for name, f in [("softmax", torch.softmax), ("logSoftmax", torch.log_softmax)]:
        for axis in (0, 1, 2):
            emit(name, {"x": numbers(3, 4, 6)}, {"axis": axis}, lambda x: f(x, axis))
        emit(name, {"x": torch.tensor([[1000.0, 0, -1000], [1000, 1000, 1000], [-1000, -1000, -996]], dtype=torch.float64)}, {"axis": 1}, lambda x: f(x, 1))
        emit(name, {"x": numbers(5, 1)}, {"axis": 1}, lambda x: f(x, 1))
        emit(name, {"x": numbers(2, 67)}, {"axis": 1}, lambda x: f(x, 1))


def norms():
    for dims, shape in [(1, [3, 8]), (2, [2, 3, 5]), (1, [2, 2, 19])]:
        tail = shape[-dims:]
        for weight, bias in [(True, True), (True, False), (False, False)]:
            inputs = {"x": numbers(*shape)}
            if weight:
                inputs["weight"] = numbers(*tail)
            if bias:
                inputs["bias"] = numbers(*tail)
            emit("layerNorm", inputs, {"dims": dims, "eps": 1e-5}, lambda x, weight=None, bias=None: F.layer_norm(x, tail, weight, bias, 1e-5))
            if not bias:
                emit("rmsNorm", inputs, {"dims": dims, "eps": 1e-6}, lambda x, weight=None: F.rms_norm(x, tail, weight, 1e-6))
    for shape in ([6, 4], [3, 4, 2, 3], [2, 3, 5]):
        channels = shape[1]
        axes = [i for i in range(len(shape)) if i != 1]

        def trained(x, weight=None, bias=None):
            return {
                "y": F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5),
                "mean": x.mean(axes),
                "variance": x.var(axes, unbiased=False),
            }

        inputs = {"x": numbers(*shape), "weight": numbers(channels), "bias": numbers(channels)}
        emit("batchNorm", inputs, {"axis": 1, "eps": 1e-5}, trained)
        emit("batchNorm", {"x": inputs["x"]}, {"axis": 1, "eps": 1e-3}, lambda x: {**trained(x), "y": F.batch_norm(x, None, None, None, None, True, 0.1, 1e-3)})
        statistics = {"runningMean": numbers(channels), "runningVariance": numbers(channels).abs() + 0.25}
        emit(
            "batchNormEval",
            {**inputs, **statistics},
            {"axis": 1, "eps": 1e-5},
            lambda x, weight, bias, runningMean, runningVariance: F.batch_norm(x, runningMean.detach(), runningVariance.detach(), weight, bias, False, 0.1, 1e-5),
            differentiate=["x", "weight", "bias"],
        )


def convolutions():
    table = [
        # input, weight, stride, padding, dilation, groups
        ([2, 3, 9], [4, 3, 3], [1], [0], [1], 1),
        ([1, 2, 12], [4, 2, 4], [2], [3], [2], 1),
        ([1, 4, 7], [4, 1, 3], [1], [1], [1], 4),
        ([2, 3, 5, 6], [4, 3, 3, 3], [1, 1], [1, 1], [1, 1], 1),
        ([1, 3, 7, 8], [2, 3, 3, 2], [2, 3], [1, 0], [1, 1], 1),
        ([1, 2, 8, 9], [3, 2, 3, 3], [1, 1], [2, 2], [2, 2], 1),
        ([2, 4, 6, 5], [6, 2, 3, 3], [2, 1], [1, 1], [1, 1], 2),
        ([1, 4, 6, 6], [4, 1, 3, 3], [1, 1], [1, 1], [1, 1], 4),
        ([1, 3, 6, 6], [6, 1, 3, 3], [2, 2], [1, 1], [1, 1], 3),
        ([2, 5, 3, 4], [3, 5, 1, 1], [1, 1], [0, 0], [1, 1], 1),
        ([1, 2, 6, 6], [2, 2, 1, 1], [2, 2], [0, 0], [1, 1], 1),
        ([1, 1, 4, 4], [2, 1, 4, 4], [4, 4], [0, 0], [1, 1], 1),
        ([1, 1, 5, 5], [1, 1, 2, 2], [1, 1], [3, 3], [1, 1], 1),
        ([1, 2, 8, 9], [2, 2, 2, 3], [3, 2], [1, 2], [2, 1], 1),
    ]
    for size, kernel, stride, padding, dilation, groups in table:
        f = F.conv1d if len(size) == 3 else F.conv2d
        options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        emit("conv", {"x": numbers(*size), "weight": numbers(*kernel, scale=0.5)}, options, lambda x, weight: f(x, weight, None, stride, padding, dilation, groups))
    transposed = [
        # input, weight [in, out / groups, …], stride, padding, output padding, dilation, groups
        ([2, 3, 5], [3, 2, 3], [2], [1], [1], [1], 1),
        ([1, 3, 4, 5], [3, 2, 3, 3], [2, 2], [1, 1], [1, 0], [1, 1], 1),
        ([1, 4, 3, 3], [4, 2, 3, 3], [1, 1], [0, 0], [0, 0], [2, 2], 2),
        ([1, 2, 3, 3], [2, 1, 2, 2], [2, 2], [0, 0], [0, 0], [1, 1], 2),
        ([1, 2, 4, 4], [2, 3, 3, 3], [1, 1], [1, 1], [0, 0], [1, 1], 1),
    ]
    for size, kernel, stride, padding, extra, dilation, groups in transposed:
        f = F.conv_transpose1d if len(size) == 3 else F.conv_transpose2d
        options = {"stride": stride, "padding": padding, "outputPadding": extra, "dilation": dilation, "groups": groups}
        emit("convTranspose", {"x": numbers(*size), "weight": numbers(*kernel, scale=0.5)}, options, lambda x, weight: f(x, weight, None, stride, padding, extra, groups, dilation))


def pools():
    table = [
        # kernel, stride, padding, dilation, ceil
        ([2, 2], [2, 2], [0, 0], [1, 1], False),
        ([3, 2], [2, 1], [1, 1], [1, 1], False),
        ([3, 3], [1, 2], [1, 0], [2, 1], False),
        ([2, 3], [2, 2], [1, 1], [1, 1], True),
        ([3, 3], [3, 3], [0, 0], [1, 1], True),
    ]
    for kernel, stride, padding, dilation, ceil in table:
        # all numbers differ, so that the place of the maximum is no matter of taste
        x = (torch.randperm(2 * 2 * 7 * 8, generator=GENERATOR).double() - 112).reshape(2, 2, 7, 8)
        x = x[:1] if ceil else x
        options = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation, "ceilMode": ceil}
        emit("maxPool2d", {"x": x / 32}, options, lambda x: F.max_pool2d(x, kernel, stride, padding, dilation, ceil))
        if dilation == [1, 1]:
            for count, divisor in [(True, 0), (False, 0), (True, 5)]:
                options = {"kernel": kernel, "stride": stride, "padding": padding, "ceilMode": ceil, "countIncludePad": count, "divisor": divisor}
                emit("avgPool2d", {"x": numbers(1, 2, 7, 8)}, options, lambda x: F.avg_pool2d(x, kernel, stride, padding, ceil, count, divisor or None))


def attentions():
    def reference(q, k, v, mask, scale=None):
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return y.transpose(1, 2)  # [batch, time, heads, width]

    table = [
        # heads, key-value heads, queries, keys, width, causal
        (2, 2, 5, 5, 4, False),
        (2, 2, 5, 5, 4, True),
        (4, 2, 4, 4, 3, True),
        (6, 1, 3, 5, 4, False),
        (2, 2, 3, 6, 4, True),
        (1, 1, 1, 7, 5, False),
        (1, 1, 19, 19, 3, True),
    ]
    for heads, shared, tq, tk, width, causal in table:
        inputs = {"q": numbers(2, heads, tq, width), "k": numbers(2, shared, tk, width), "v": numbers(2, shared, tk, width)}
        mask = torch.ones(tq, tk, dtype=torch.bool).tril() if causal else None
        emit("attention", inputs, {"causal": causal}, lambda q, k, v: reference(q, k, v, mask))
    small = {"q": numbers(1, 2, 3, 4), "k": numbers(1, 2, 6, 4), "v": numbers(1, 2, 6, 2)}
    emit("attention", small, {"causal": False, "scale": 0.25}, lambda q, k, v: reference(q, k, v, None, 0.25))
    seen = torch.rand(1, 1, 3, 6, generator=GENERATOR) < 0.6
    seen[..., 0] = True
    emit("attention", small, {"causal": False}, lambda q, k, v, mask: reference(q, k, v, mask), {"mask": seen})
    added = numbers(2, 3, 6)
    emit("attention", small, {"causal": False}, lambda q, k, v, mask: reference(q, k, v, mask.double()), {"mask": added.to(torch.bfloat16)})
    for causal, length in [(False, 4), (True, 5), (True, 3)]:
        keys = torch.arange(6)[None, :]
        mask = keys < length
        if causal:
            mask = keys <= length - 3 + torch.arange(3)[:, None]
        mask = mask.expand(3, 6)
        emit("attention", small, {"causal": causal, "length": length}, lambda q, k, v: reference(q, k, v, mask))


def losses():
    targets = torch.tensor([1, 0, 4, 2, 2, 3], dtype=torch.int32)
    ignored = torch.tensor([1, -100, 4, 2, -100, 3], dtype=torch.int32)
    sevens = torch.tensor([1, 4, 4, 2, 4, 3], dtype=torch.int32)
    weight = numbers(5).abs() + 0.125
    table = [
        (targets, {}), (targets, {"reduction": "sum"}), (targets, {"reduction": "none"}), (ignored, {}),
        (ignored, {"reduction": "none"}), (sevens, {"ignoreIndex": 4}), (targets, {"labelSmoothing": 0.1}),
        (ignored, {"labelSmoothing": 0.25, "reduction": "sum"}), (ignored, {"labelSmoothing": 0.25}),
    ]

    def torch_options(options, **more):
        names = {"ignoreIndex": "ignore_index", "labelSmoothing": "label_smoothing", "reduction": "reduction"}
        return {**{names[key]: value for key, value in options.items()}, **more}

    for target, options in table:
        for weighted in (False, True):
            def entropy(x, target, weight=None):
                return F.cross_entropy(x, target.long(), **torch_options(options, weight=weight))

            constants = {"target": target, **({"weight": weight.to(torch.bfloat16).double()} if weighted else {})}
            emit("crossEntropy", {"x": numbers(6, 5)}, options, entropy, constants)
        if "labelSmoothing" not in options:
            emit("nllLoss", {"x": numbers(6, 5)}, options, lambda x, target, weight: F.nll_loss(x, target.long(), **torch_options(options, weight=weight)), {"target": target, "weight": weight})
        def head(hidden, weight, target):
            return F.cross_entropy(hidden @ weight.T, target.long(), **torch_options(options))

        for chunk in (2, 64):
            emit("linearCrossEntropy", {"hidden": numbers(6, 3), "weight": numbers(5, 3)}, {**options, "chunk": chunk}, head, {"target": target})
    emit("crossEntropy", {"x": torch.tensor([[1000.0, -1000], [-1000, 1000]], dtype=torch.float64)}, {}, lambda x, target: F.cross_entropy(x, target.long()), {"target": torch.tensor([0, 0], dtype=torch.int32)})
    for reduction in ("mean", "sum", "none"):
        emit("mseLoss", {"x": numbers(3, 5), "target": numbers(3, 5)}, {"reduction": reduction}, lambda x, target: F.mse_loss(x, target, reduction=reduction))
        target = numbers(3, 5).abs().clamp(0, 1)
        emit("binaryCrossEntropyWithLogits", {"x": numbers(3, 5)}, {"reduction": reduction}, lambda x, target: F.binary_cross_entropy_with_logits(x, target, reduction=reduction), {"target": target})
        extras = {"target": target, "weight": numbers(5).abs(), "posWeight": numbers(5).abs()}
        emit("binaryCrossEntropyWithLogits", {"x": numbers(3, 5)}, {"reduction": reduction}, lambda x, target, weight, posWeight: F.binary_cross_entropy_with_logits(x, target, weight, pos_weight=posWeight, reduction=reduction), extras)
    large = torch.tensor([-1000.0, -64, 64, 1000], dtype=torch.float64)
    emit("binaryCrossEntropyWithLogits", {"x": large}, {"reduction": "none"}, lambda x, target: F.binary_cross_entropy_with_logits(x, target, reduction="none"), {"target": torch.tensor([0.0, 1, 1, 0], dtype=torch.float64)})


def write(folder):
    activations()
    softmaxes()
    norms()
    convolutions()
    pools()
    attentions()
    losses()
    save(folder / "composites.json", {"torch": torch.__version__.split("+")[0], "cases": CASES})
