"""Training in mixed precision: the losses of twenty steps under torch.autocast("cpu", torch.bfloat16), and in float32 beside them.

The decoders are those of fixtures/pretrained (gpt2, llama), which must be there; the MLP and the convolutional net are stored here.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .encoding import record, save

STEPS = 20
PRETRAINED = Path(__file__).parent.parent / "fixtures" / "pretrained"


def networks():
    torch.manual_seed(31)
    mlp = nn.Sequential(nn.Linear(12, 32), nn.GELU(), nn.LayerNorm(32), nn.Linear(32, 5))
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(8, 12, 3, padding=1, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(48, 5)
    )
    return {"mlp": (mlp, (16, 12)), "conv": (conv, (8, 3, 8, 8))}


def train(model, loss_of, enabled, lr):
    """The losses, and the gradients of the first step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)  # which passes errors of gradients on, where Adam hides their size
    losses, gradients = [], None
    for _ in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            loss = loss_of(model)
        assert loss.dtype == torch.float32
        loss.backward()
        if gradients is None:
            gradients = {k: p.grad.clone() for k, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return losses, gradients


def distance(a, b):
    """Relative distance of two sets of gradients, all parameters together."""
    square = lambda xs: sum((x.double() ** 2).sum().item() for x in xs)
    return (square([a[k] - b[k] for k in a]) / square(b.values())) ** 0.5


def both(make, loss_of, lr):
    mixed, g16 = train(make(), loss_of, True, lr)
    plain, g32 = train(make(), loss_of, False, lr)
    apart = distance(g16, g32)
    print(f"  {mixed[0]:.4f} -> {mixed[-1]:.4f}, float32 {plain[-1]:.4f}; gradients {apart:.2e} apart")
    return {"lr": lr, "mixed": mixed, "float32": plain, "gradients": apart}


def write(folder):
    import copy

    from transformers import AutoModelForCausalLM

    g = torch.Generator().manual_seed(8)
    out = {"networks": {}, "decoders": {}}
    for name, (model, shape) in networks().items():
        x = torch.randn(shape, generator=g)
        y = torch.randint(0, 5, (shape[0],), generator=g)
        weights = {k: record(v) for k, v in model.state_dict().items() if v.is_floating_point()}
        loss_of = lambda m: F.cross_entropy(m(x), y)
        out["networks"][name] = {"x": record(x), "y": record(y), "weights": weights, **both(lambda: copy.deepcopy(model).train(), loss_of, 0.03)}
    for name in ["gpt2", "llama"]:
        load = lambda: AutoModelForCausalLM.from_pretrained(PRETRAINED / name, dtype=torch.float32, attn_implementation="sdpa")
        vocabulary = load().config.vocab_size
        ids = torch.randint(1, vocabulary, (3, 25), generator=g)  # 0 is for padding, and is not learnt

        def loss_of(m):
            logits = m(input_ids=ids[:, :-1], use_cache=False).logits
            return F.cross_entropy(logits.reshape(-1, vocabulary), ids[:, 1:].reshape(-1))

        out["decoders"][name] = {"ids": record(ids), **both(lambda: load().eval(), loss_of, 0.03)}
    save(folder / "mixed.json", out)
