# PyTorch's side of gpt.ts: `peer.py dump FOLDER` writes parameters, tokens, gradients and losses; `peer.py time STEPS`.
import os, sys, time
import numpy as np, torch, torch.nn as nn, torch.nn.functional as F

V, T, C, L, H, B = 65, 256, 384, 6, 6, 8
torch.manual_seed(0)
torch.set_num_threads(int(os.environ.get("THREADS", "2")))

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm1, self.qkv, self.proj = nn.LayerNorm(C), nn.Linear(C, 3 * C), nn.Linear(C, C)
        self.norm2, self.up, self.down = nn.LayerNorm(C), nn.Linear(C, 4 * C), nn.Linear(4 * C, C)
    def forward(self, x):
        q, k, v = (t.view(B, T, H, C // H).transpose(1, 2) for t in self.qkv(self.norm1(x)).split(C, 2))
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(B, T, C))
        return x + self.down(F.gelu(self.up(self.norm2(x)), approximate="tanh"))

class GPT(nn.Module):
    def __init__(self):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(V, C), nn.Embedding(T, C)
        self.blocks, self.norm = nn.ModuleList(Block() for _ in range(L)), nn.LayerNorm(C)
    def forward(self, tokens, targets):
        x = self.wte(tokens) + self.wpe.weight
        for block in self.blocks:
            x = block(x)
        return F.cross_entropy((self.norm(x) @ self.wte.weight.T).view(-1, V), targets.view(-1))

model = GPT()
tokens, targets = torch.randint(0, V, (B, T)), torch.randint(0, V, (B, T))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
if sys.argv[1] == "dump":
    save = lambda name, x: np.asarray(x).tofile(f"{sys.argv[2]}/{name}")
    flat = lambda tensors: np.concatenate([t.detach().numpy().ravel() for t in tensors]).astype(np.float32)
    with torch.no_grad():  # small embeddings and norms off their start, so that every gradient says something
        for name, p in model.named_parameters():
            if name.startswith("w"): p.mul_(0.1)
            if "norm" in name: p.add_(torch.randn_like(p) * 0.05)
    save("params.f32", flat(model.parameters()))
    save("idx.i32", tokens.numpy().astype(np.int32))
    save("tgt.i32", targets.numpy().astype(np.int32))
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        loss = model(tokens, targets)
        loss.backward()
        losses.append(loss.item())
        if step == 0: save("grads.f32", flat(p.grad for p in model.parameters()))
        optimizer.step()
    save("losses.f32", np.array(losses, np.float32))
else:
    times, steps = [], int(sys.argv[2])
    for step in range(steps + 2):
        if step == 2: cpu = time.process_time()
        start = time.perf_counter()
        model(tokens, targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(1e3 * (time.perf_counter() - start))
    used = time.process_time() - cpu
    times = sorted(times[2:])
    print(f"gpt in PyTorch {torch.__version__}: median {times[len(times) // 2]:.1f} ms, min {times[0]:.1f}; {1e3 * used / steps:.0f} ms of processor a step")
