"""Recurrent layers with first states, several lengths, layers and directions, with and without biases: cases as those of layers.py.

Inputs are the sequence and, in most cases, the first states; the gradients are those of all outputs.
"""

import torch
from torch import nn

from . import layers
from .encoding import save

KINDS = [("RNN", nn.RNN, {}), ("RNN", nn.RNN, {"nonlinearity": "relu"}), ("GRU", nn.GRU, {}), ("LSTM", nn.LSTM, {})]
OPTIONS = {"numLayers": "num_layers", "batchFirst": "batch_first"}

# options, time, batch (None: no axis for it), first states given
SHAPES = [
    ({}, 1, 2, True),
    ({"bias": False}, 2, 3, True),
    ({}, 4, None, True),
    ({}, 3, None, False),
    ({"numLayers": 2, "bidirectional": True, "batchFirst": True}, 3, 2, True),
    ({"numLayers": 2, "batchFirst": True, "bias": False}, 5, 1, True),
]


def flat(is_lstm):
    def call(module, x, *states):
        given = (states if is_lstm else states[0],) if states else ()
        y, last = module(x, *given)
        return (y, *last) if is_lstm else (y, last)

    return call


def write(folder):
    layers.CASES = []
    layers.GENERATOR = torch.Generator().manual_seed(7)
    for name, make, own in KINDS:
        is_lstm = name == "LSTM"
        sizes = [(3, 4, *shape) for shape in SHAPES] + [(6, 17, {"bidirectional": True}, 9, 5, True)]
        for width, hidden, options, time, batch, given in sizes:
            arguments = {**own, **options}
            module = make(width, hidden, **{OPTIONS.get(key, key): value for key, value in arguments.items()})
            count = options.get("numLayers", 1) * (2 if options.get("bidirectional") else 1)
            if batch is None:
                x, state = [time, width], [count, hidden]
            else:
                x = [batch, time, width] if options.get("batchFirst") else [time, batch, width]
                state = [count, batch, hidden]
            inputs = [layers.numbers(*x)] + [layers.numbers(*state) for _ in range((2 if is_lstm else 1) if given else 0)]
            layers.emit(name, [width, hidden, arguments], module, inputs, flat(is_lstm), outputs_used=3)
    save(folder / "recurrent.json", {"cases": layers.CASES})
