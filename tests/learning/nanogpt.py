# What PyTorch reaches at nanoGPT's CPU setting (its README: 4 layers, 4 heads, width 128, context 64, batch 12, 2,000 steps,
# no dropout, no biases), by the loss on the whole validation split: writes fixtures/nanogpt.json.
#   python nanogpt.py INPUT.txt [seed…]
import json, math, os, sys, time
import torch, torch.nn as nn, torch.nn.functional as F

V_SPLIT, T, L, H, C, B, STEPS = 0.9, 64, 4, 4, 128, 12, 2000
LR, MIN_LR, WARMUP, BETAS, DECAY, CLIP = 1e-3, 1e-4, 100, (0.9, 0.99), 0.1, 1.0
text = open(sys.argv[1], encoding="utf8").read()
characters = sorted(set(text))
tokens = torch.tensor([characters.index(c) for c in text])
cut = int(len(tokens) * V_SPLIT)
train, validation, V = tokens[:cut], tokens[cut:], len(characters)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        linear = lambda i, o: nn.Linear(i, o, bias=False)
        self.ln_1, self.ln_2 = nn.LayerNorm(C, bias=False), nn.LayerNorm(C, bias=False)
        self.c_attn, self.attn_proj, self.c_fc, self.mlp_proj = linear(C, 3 * C), linear(C, C), linear(C, 4 * C), linear(4 * C, C)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, H, c // H).transpose(1, 2) for y in self.c_attn(self.ln_1(x)).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn_proj(y)
        return x + self.mlp_proj(F.gelu(self.c_fc(self.ln_2(x))))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.h, self.ln_f = nn.ModuleList(Block() for _ in range(L)), nn.LayerNorm(C, bias=False)
        for name, p in self.named_parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02 / math.sqrt(2 * L) if "proj" in name else 0.02)

    def forward(self, x, y):
        x = self.wte(x) + self.wpe.weight[: x.shape[1]]
        for block in self.h:
            x = block(x)
        return F.cross_entropy(F.linear(self.ln_f(x), self.wte.weight).view(-1, V), y.reshape(-1))


@torch.no_grad()
def whole(model):
    """The mean over every token of the split but its first, in consecutive windows."""
    n = (len(validation) - 1) // T
    x, y = validation[: n * T].view(n, T), validation[1 : n * T + 1].view(n, T)
    total = sum(float(model(x[i : i + 256], y[i : i + 256])) * y[i : i + 256].numel() for i in range(0, n, 256))
    rest = len(validation) - 1 - n * T
    if rest:
        total += float(model(validation[None, n * T : -1], validation[None, n * T + 1 :])) * rest
    return total / (len(validation) - 1)


def run(seed):
    torch.manual_seed(seed)
    model = GPT()
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": DECAY},
        {"params": [p for p in model.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, fused=True)
    start = time.perf_counter()
    for step in range(STEPS):
        lr = LR * (step + 1) / (WARMUP + 1)
        if step >= WARMUP:
            lr = MIN_LR + 0.5 * (1 + math.cos(math.pi * (step - WARMUP) / (STEPS - WARMUP))) * (LR - MIN_LR)
        for group in optimizer.param_groups:
            group["lr"] = lr
        at = torch.randint(len(train) - T, (B,))
        x, y = (torch.stack([train[i + d : i + d + T] for i in at]) for d in (0, 1))
        optimizer.zero_grad()
        model(x, y).backward()
        nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
    seconds = time.perf_counter() - start
    loss = whole(model)
    print(f"seed {seed}: validation loss {loss:.4f}, {seconds:.0f} s", flush=True)
    return loss


seeds = [int(s) for s in sys.argv[2:]] or [1, 2, 3]
losses = [run(seed) for seed in seeds]
out = {"torch": torch.__version__, "seeds": seeds, "validationLosses": losses, "mean": sum(losses) / len(losses)}
with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "fixtures", "nanogpt.json"), "w") as file:
    json.dump(out, file, indent=2)
    file.write("\n")
