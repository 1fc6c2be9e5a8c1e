"""A GPT-2 of two layers in plain PyTorch: its loss, every gradient, and fifty AdamW steps on given batches, in float64.

Names and layouts of the weights are those of Hugging Face's GPT-2 (projections as [in, out]); the output head is the
token embedding.
"""

import math

import torch
import torch.nn.functional as F

from .encoding import record, save

LAYERS, HEADS, WIDTH, VOCABULARY, CONTEXT, BATCH, STEPS = 2, 2, 16, 29, 12, 3, 50
LR, BETAS, EPS, DECAY = 3e-3, (0.9, 0.95), 1e-8, 0.1


def weights():
    g = torch.Generator().manual_seed(1337)

    def normal(*shape, scale=0.08):
        return (torch.randn(shape, generator=g) * scale).double()

    w = {"wte.weight": normal(VOCABULARY, WIDTH), "wpe.weight": normal(CONTEXT, WIDTH)}
    for i in range(LAYERS):
        h = f"h.{i}."
        for name in ("ln_1", "ln_2"):
            w[h + name + ".weight"] = 1 + normal(WIDTH)
            w[h + name + ".bias"] = normal(WIDTH)
        for name, n, m in [("attn.c_attn", WIDTH, 3 * WIDTH), ("attn.c_proj", WIDTH, WIDTH), ("mlp.c_fc", WIDTH, 4 * WIDTH), ("mlp.c_proj", 4 * WIDTH, WIDTH)]:
            w[h + name + ".weight"] = normal(n, m, scale=0.2)
            w[h + name + ".bias"] = normal(m)
    w["ln_f.weight"] = 1 + normal(WIDTH)
    w["ln_f.bias"] = normal(WIDTH)
    return {name: value.float().double() for name, value in w.items()}


def logits(w, tokens):
    batch, time = tokens.shape
    x = w["wte.weight"][tokens] + w["wpe.weight"][:time]
    norm = lambda x, name: F.layer_norm(x, [WIDTH], w[name + ".weight"], w[name + ".bias"], 1e-5)
    project = lambda x, name: x @ w[name + ".weight"] + w[name + ".bias"]
    for i in range(LAYERS):
        h = f"h.{i}."
        q, k, v = project(norm(x, h + "ln_1"), h + "attn.c_attn").split(WIDTH, 2)
        heads = [t.view(batch, time, HEADS, WIDTH // HEADS).transpose(1, 2) for t in (q, k, v)]
        y = F.scaled_dot_product_attention(*heads, is_causal=True).transpose(1, 2).reshape(batch, time, WIDTH)
        x = x + project(y, h + "attn.c_proj")
        x = x + project(F.gelu(project(norm(x, h + "ln_2"), h + "mlp.c_fc"), approximate="tanh"), h + "mlp.c_proj")
    return norm(x, "ln_f") @ w["wte.weight"].T


def write(folder):
    start = weights()
    g = torch.Generator().manual_seed(42)
    # A sequence with something to learn: each token depends on the one before.
    table = torch.randint(0, VOCABULARY, (VOCABULARY, 2), generator=g)
    batches = torch.zeros(STEPS, BATCH, CONTEXT + 1, dtype=torch.int64)
    for s in range(STEPS):
        for b in range(BATCH):
            token = int(torch.randint(0, VOCABULARY, (1,), generator=g))
            for t in range(CONTEXT + 1):
                batches[s, b, t] = token
                token = int(table[token, int(torch.rand(1, generator=g) < 0.2)])
    w = {name: value.clone().requires_grad_() for name, value in start.items()}
    out = {}

    def loss_of(step):
        y = logits(w, batches[step, :, :-1])
        return y, F.cross_entropy(y.reshape(-1, VOCABULARY), batches[step, :, 1:].reshape(-1))

    first_logits, loss = loss_of(0)
    loss.backward()
    out["logits"] = record(first_logits.detach())
    out["loss"] = loss.item()
    out["gradients"] = {name: record(p.grad.float()) for name, p in w.items()}
    decayed = [p for p in w.values() if p.dim() >= 2]
    rest = [p for p in w.values() if p.dim() < 2]
    optimizer = torch.optim.AdamW([{"params": decayed, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}], lr=LR, betas=BETAS, eps=EPS)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        _, loss = loss_of(step)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(w.values(), 1.0)
        optimizer.step()
        losses.append(loss.item())
    print(f"gpt: loss {losses[0]:.4f} -> {losses[-1]:.4f}, ln V = {math.log(VOCABULARY):.4f}")
    save(folder / "gpt.json", {
        "torch": torch.__version__.split("+")[0],
        "config": {"layers": LAYERS, "heads": HEADS, "width": WIDTH, "vocabulary": VOCABULARY, "context": CONTEXT, "layerNormEps": 1e-5},
        "optimizer": {"lr": LR, "betas": list(BETAS), "eps": EPS, "weightDecay": DECAY, "maxNorm": 1.0},
        "weights": {name: record(value.float()) for name, value in start.items()},
        "batches": record(batches.to(torch.uint8)),
        **out,
        "losses": losses,
        "finalWeights": {name: record(p.detach().float()) for name, p in w.items()},
    })
