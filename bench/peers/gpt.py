# GPT-2's architecture in PyTorch: gpt.py eager|compile VOCABULARY CONTEXT LAYERS HEADS WIDTH BATCH STEPS
import sys

from common import fill, integers, serve_training, torch_or_absent

mode = sys.argv[1]
V, T, L, H, C, B, STEPS = map(int, sys.argv[2:9])
torch = torch_or_absent(mode)
nn, F = torch.nn, torch.nn.functional


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(C, 3 * C), nn.Linear(C, C)

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, H, c // H).transpose(1, 2) for y in self.c_attn(x).split(c, 2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).reshape(b, t, c))


class FeedForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(C, 4 * C), nn.Linear(4 * C, C)

    def forward(self, x):
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.ln_1, self.attn, self.ln_2, self.mlp = nn.LayerNorm(C), Attention(), nn.LayerNorm(C), FeedForward()

    def forward(self, x):
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.h, self.ln_f = nn.ModuleList(Block() for _ in range(L)), nn.LayerNorm(C)

    def forward(self, ids, targets):
        x = self.wte(ids) + self.wpe.weight[: ids.shape[1]]
        for block in self.h:
            x = block(x)
        logits = F.linear(self.ln_f(x), self.wte.weight)
        return F.cross_entropy(logits.view(-1, V), targets.view(-1))


batches = [[torch.from_numpy(integers(seed, B * T, V)).view(B, T) for seed in (10 + i, 20 + i)] for i in range(8)]


def make(compile):
    model = GPT()
    fill(model, lambda name: ".c_" in name and name.endswith("weight"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.01, fused=True)
    run = compile(model)
    return lambda i: run(*batches[i % 8]), optimizer


serve_training(mode, "gpt", make, STEPS)
