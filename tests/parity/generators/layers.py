"""Modules of torch.nn in float64: output, gradients of the input and of every parameter, buffers afterwards.

A case has the constructor's arguments as Nabla takes them (sizes in order, then options), the state dict under
PyTorch's keys, and the inputs. Numbers are multiples of 1/32, stored as bfloat16. Dropout is 0 or not there.
"""

import torch
from torch import nn

from .encoding import record, save

CASES = []
GENERATOR = torch.Generator().manual_seed(99)


def numbers(*shape, scale=1.0, low=-4.0, high=4.0):
    x = torch.randn(shape, generator=GENERATOR, dtype=torch.float64) * scale
    return (x.clamp(low, high) * 32).round() / 32


def stored(x):
    return record(x.to(torch.bfloat16) if x.is_floating_point() else x)


def emit(name, arguments, module, inputs, call=None, train=True, outputs_used=1, repeat=1):
    """`call(module, *inputs)` gives a tensor or a tuple; the gradients are those of Σ seed · output over `outputs_used`."""
    module = module.double()
    module.train(train)
    with torch.no_grad():
        for key, value in module.state_dict().items():
            if value.is_floating_point():
                fresh = numbers(*value.shape, scale=0.5)
                value.copy_(fresh.abs() + 0.25 if key.endswith("running_var") else fresh)
    state = {key: stored(value.clone()) for key, value in module.state_dict().items()}
    leaves = [x.clone().requires_grad_() if x.is_floating_point() else x.long() for x in inputs]
    for _ in range(repeat):  # a second pass through the same module moves its running statistics twice
        out = call(module, *leaves) if call else module(*leaves)
    outs = list(out) if isinstance(out, (tuple, list)) else [out]
    seeds = [numbers(*o.shape) for o in outs[:outputs_used]]
    wanted = {**{f"input {i}": x for i, x in enumerate(leaves) if x.requires_grad}, **dict(module.named_parameters())}
    loss = sum((o * s).sum() for o, s in zip(outs, seeds))
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    before = {key: value for key, value in state.items()}
    moved = {key: record(value) for key, value in module.state_dict().items() if key not in dict(module.named_parameters()) and value.is_floating_point()}
    CASES.append({
        "name": name,
        "args": arguments,
        "train": train,
        "passes": repeat,
        "state": before,
        "inputs": [stored(x) for x in inputs],
        "outputs": [record(o) for o in outs],
        "seeds": [stored(s) for s in seeds],
        "gradients": {key: record(g) for key, g in zip(wanted, found) if g is not None},
        "buffers": moved if train else {},
    })


class Hardsigmoid(nn.Module):
    """torch.nn.Hardsigmoid's gradient holds 1/6 in float32, whatever the input's dtype; this is its definition."""

    def forward(self, x):
        return nn.functional.relu6(x + 3) / 6


def layers():
    emit("Linear", [5, 3, {}], nn.Linear(5, 3), [numbers(2, 4, 5)])
    emit("Linear", [5, 3, {"bias": False}], nn.Linear(5, 3, bias=False), [numbers(5)])
    emit("Embedding", [7, 3, {}], nn.Embedding(7, 3), [torch.tensor([[1, 0, 6], [1, 1, 2]], dtype=torch.int32)])
    emit("Embedding", [7, 3, {"paddingIdx": 1}], nn.Embedding(7, 3, padding_idx=1), [torch.tensor([1, 0, 6, 1], dtype=torch.int32)])
    emit("Conv1d", [3, 4, 3, {"stride": 2, "padding": 1}], nn.Conv1d(3, 4, 3, stride=2, padding=1), [numbers(2, 3, 8)])
    emit("Conv2d", [3, 4, 3, {"padding": 1}], nn.Conv2d(3, 4, 3, padding=1), [numbers(2, 3, 4, 5)])
    emit("Conv2d", [4, 4, [3, 2], {"stride": [2, 1], "dilation": [1, 2], "groups": 2, "bias": False}], nn.Conv2d(4, 4, (3, 2), stride=(2, 1), dilation=(1, 2), groups=2, bias=False), [numbers(1, 4, 6, 5)])
    emit("Conv2d", [2, 3, 3, {"padding": "same"}], nn.Conv2d(2, 3, 3, padding="same"), [numbers(1, 2, 4, 4)])
    emit("ConvTranspose2d", [3, 2, 3, {"stride": 2, "padding": 1, "outputPadding": 1}], nn.ConvTranspose2d(3, 2, 3, stride=2, padding=1, output_padding=1), [numbers(1, 3, 3, 4)])
    emit("MaxPool2d", [2, {}], nn.MaxPool2d(2), [(torch.randperm(2 * 4 * 6, generator=GENERATOR).double() - 24).reshape(1, 2, 4, 6) / 32])
    emit("AvgPool2d", [3, {"stride": 2, "padding": 1}], nn.AvgPool2d(3, 2, 1), [numbers(1, 2, 5, 6)])
    emit("AdaptiveAvgPool2d", [1, {}], nn.AdaptiveAvgPool2d(1), [numbers(2, 3, 4, 5)])
    emit("AdaptiveAvgPool2d", [[2, 3], {}], nn.AdaptiveAvgPool2d((2, 3)), [numbers(1, 2, 5, 7)])
    for train in (True, False):
        emit("BatchNorm1d", [4, {}], nn.BatchNorm1d(4), [numbers(6, 4)], train=train)
        emit("BatchNorm1d", [3, {}], nn.BatchNorm1d(3), [numbers(2, 3, 4)], train=train)
        emit("BatchNorm2d", [3, {"momentum": 0.3, "eps": 1e-3}], nn.BatchNorm2d(3, momentum=0.3, eps=1e-3), [numbers(2, 3, 3, 2)], train=train, repeat=2)
        emit("BatchNorm2d", [3, {"affine": False}], nn.BatchNorm2d(3, affine=False), [numbers(2, 3, 3, 2)], train=train)
    emit("LayerNorm", [6, {}], nn.LayerNorm(6), [numbers(2, 3, 6)])
    emit("LayerNorm", [[3, 4], {"elementwiseAffine": False}], nn.LayerNorm([3, 4], elementwise_affine=False), [numbers(2, 3, 4)])
    emit("RMSNorm", [6, {"eps": 1e-5}], nn.RMSNorm(6, eps=1e-5), [numbers(2, 6)])
    emit("GroupNorm", [2, 6, {}], nn.GroupNorm(2, 6), [numbers(2, 6, 3, 2)])
    emit("InstanceNorm2d", [3, {}], nn.InstanceNorm2d(3), [numbers(2, 3, 3, 4)])
    emit("Flatten", [{}], nn.Flatten(), [numbers(2, 3, 4)])
    emit("Identity", [{}], nn.Identity(), [numbers(3)])
    emit("Dropout", [0.5, {}], nn.Dropout(0.5), [numbers(3, 4)], train=False)

    x = numbers(3, 5)
    for name, arguments, module in [
        ("ReLU", [], nn.ReLU()), ("ReLU6", [], nn.ReLU6()), ("LeakyReLU", [0.2], nn.LeakyReLU(0.2)), ("ELU", [], nn.ELU()), ("SELU", [], nn.SELU()),
        ("CELU", [], nn.CELU()), ("GELU", [{}], nn.GELU()), ("GELU", [{"approximate": "tanh"}], nn.GELU(approximate="tanh")), ("SiLU", [], nn.SiLU()),
        ("Mish", [], nn.Mish()), ("Sigmoid", [], nn.Sigmoid()), ("LogSigmoid", [], nn.LogSigmoid()), ("Tanh", [], nn.Tanh()), ("Softplus", [], nn.Softplus()),
        ("Softsign", [], nn.Softsign()), ("Hardtanh", [], nn.Hardtanh()), ("Hardsigmoid", [], Hardsigmoid()), ("Hardswish", [], nn.Hardswish()),
        ("Softmax", [1], nn.Softmax(1)), ("LogSoftmax", [1], nn.LogSoftmax(1)), ("PReLU", [], nn.PReLU()), ("PReLU", [5], nn.PReLU(5)), ("Threshold", [0.1, 20], nn.Threshold(0.1, 20)),
        ("GLU", [], nn.GLU()),
    ]:
        emit(name, arguments, module, [numbers(3, 6) if name == "GLU" else x])

    for name, make, cell in [("RNN", nn.RNN, nn.RNNCell), ("GRU", nn.GRU, nn.GRUCell), ("LSTM", nn.LSTM, nn.LSTMCell)]:
        def flat(module, x):
            y, h = module(x)
            return (y, *h) if isinstance(h, tuple) else (y, h)

        emit(name, [3, 4, {"batchFirst": True}], make(3, 4, batch_first=True), [numbers(2, 5, 3)], flat)
        emit(name, [3, 4, {}], make(3, 4), [numbers(5, 2, 3)], flat, outputs_used=2)
        emit(name, [3, 4, {"numLayers": 2, "bidirectional": True, "batchFirst": True}], make(3, 4, 2, batch_first=True, bidirectional=True), [numbers(2, 3, 3)], flat)
        if name == "LSTM":
            emit("LSTMCell", [3, 4, {}], cell(3, 4), [numbers(2, 3), numbers(2, 4), numbers(2, 4)], lambda m, x, h, c: m(x, (h, c)), outputs_used=2)
        else:
            emit(name + "Cell", [3, 4, {}], cell(3, 4), [numbers(2, 3), numbers(2, 4)])

    emit("MultiheadAttention", [6, 2, {"batchFirst": True}], nn.MultiheadAttention(6, 2, batch_first=True), [numbers(2, 4, 6), numbers(2, 5, 6), numbers(2, 5, 6)], lambda m, q, k, v: m(q, k, v, need_weights=False)[0])
    emit("TransformerEncoderLayer", [6, 2, {"dimFeedforward": 8, "dropout": 0, "batchFirst": True}], nn.TransformerEncoderLayer(6, 2, 8, 0, batch_first=True), [numbers(2, 4, 6)])
    emit("TransformerEncoderLayer", [6, 2, {"dimFeedforward": 8, "dropout": 0, "batchFirst": True, "normFirst": True, "activation": "gelu"}], nn.TransformerEncoderLayer(6, 2, 8, 0, "gelu", batch_first=True, norm_first=True), [numbers(2, 4, 6)])


def losses():
    x, y = numbers(3, 4), numbers(3, 4)
    unit = numbers(3, 4).abs().clamp(0.03125, 0.96875)
    classes = torch.tensor([2, 0, 3], dtype=torch.int32)
    for reduction in ("mean", "sum", "none"):
        o = {"reduction": reduction}
        emit("MSELoss", [o], nn.MSELoss(reduction=reduction), [x, y])
        emit("L1Loss", [o], nn.L1Loss(reduction=reduction), [x, y])
        emit("SmoothL1Loss", [{**o, "beta": 0.5}], nn.SmoothL1Loss(reduction=reduction, beta=0.5), [x, y])
        emit("HuberLoss", [{**o, "delta": 0.7}], nn.HuberLoss(reduction=reduction, delta=0.7), [x, y])
        emit("BCELoss", [o], nn.BCELoss(reduction=reduction), [unit, numbers(3, 4).abs().clamp(0, 1)])
        emit("BCEWithLogitsLoss", [o], nn.BCEWithLogitsLoss(reduction=reduction), [x, unit])
        emit("CrossEntropyLoss", [o], nn.CrossEntropyLoss(reduction=reduction), [x, classes])
        emit("NLLLoss", [o], nn.NLLLoss(reduction=reduction), [x, classes])
        emit("KLDivLoss", [o], nn.KLDivLoss(reduction=reduction), [x, unit])
        emit("PoissonNLLLoss", [o], nn.PoissonNLLLoss(reduction=reduction), [x, y.abs()])
    emit("CrossEntropyLoss", [{"labelSmoothing": 0.1, "ignoreIndex": 3}], nn.CrossEntropyLoss(label_smoothing=0.1, ignore_index=3), [x, classes])
    emit("CrossEntropyLoss", [{}], nn.CrossEntropyLoss(), [numbers(2, 4, 3), torch.tensor([[2, 0, 3], [1, 1, 0]], dtype=torch.int32)])
    emit("KLDivLoss", [{"reduction": "batchmean"}], nn.KLDivLoss(reduction="batchmean"), [x, unit])


def write(folder):
    layers()
    losses()
    save(folder / "layers.json", {"torch": torch.__version__.split("+")[0], "cases": CASES})
