# LoRA on GPT-2's architecture in PEFT: lora.py eager VOCABULARY CONTEXT LAYERS HEADS WIDTH BATCH TIME RANK [float32|bfloat16]
# bfloat16: under torch.autocast, weights and optimiser in float32
import sys

from common import absent, fill, integers, serve_training, torch_or_absent, uniform

mode = sys.argv[1]
V, T, L, H, C, B, TIME, R = map(int, sys.argv[2:10])
mixed = sys.argv[10:] == ["bfloat16"]
torch = torch_or_absent(mode)
try:
    import peft
    import transformers
except ImportError as error:
    absent(f"{sys.executable} has no {error.name}")

batches = [[torch.from_numpy(integers(seed, B * TIME, V)).view(B, TIME) for seed in (10 + i, 20 + i)] for i in range(2)]


def make(compile):
    config = transformers.GPT2Config(
        vocab_size=V, n_positions=T, n_layer=L, n_head=H, n_embd=C, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, use_cache=False
    )
    base = transformers.GPT2LMHeadModel(config)
    fill(base)
    target = ["c_attn", "c_proj", "c_fc"]
    model = peft.get_peft_model(base, peft.LoraConfig(r=R, lora_alpha=2 * R, target_modules=target, fan_in_fan_out=True))
    with torch.no_grad():
        seed = 5000
        for name, p in model.named_parameters():
            if "lora_A" in name:
                p.copy_(torch.from_numpy(uniform(seed, p.numel(), p.shape[1] ** -0.5)).reshape(p.shape))
                seed += 1
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.01, fused=True)

    def loss(i):
        ids, targets = batches[i % 2]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=mixed):
            logits = model(input_ids=ids).logits
            return torch.nn.functional.cross_entropy(logits.view(-1, V), targets.view(-1))

    return loss, optimizer


serve_training(mode, "lora", make, 1, checked=3)
