"""Fine-tuning by PEFT and bitsandbytes: twenty steps of LoRA training, the adapters that PEFT saves, and NF4's codes.

The models are a tiny random GPT-2 of transformers and a plain torch module, in float64 where bitsandbytes allows it. Needs
transformers, peft and bitsandbytes beside torch.
"""

import base64
import copy
import tempfile
import warnings
from pathlib import Path

import torch
import torch.nn.functional as F

from .encoding import record, save

warnings.filterwarnings("ignore")
WIDTH, HEADS, LAYERS, VOCABULARY, CONTEXT, BATCH, STEPS, LR = 16, 2, 2, 29, 12, 3, 20, 1e-2


def gpt2(width=WIDTH, layers=LAYERS):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(11)
    config = GPT2Config(vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=width, n_layer=layers, n_head=HEADS, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, initializer_range=0.2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    for p in model.parameters():  # biases are zeros at the start, norms ones
        p.data += 0.05 * torch.randn_like(p)
    return model


class Plain(torch.nn.Module):
    """Two linear layers with a tanh between."""

    def __init__(self):
        super().__init__()
        self.fc1 = torch.nn.Linear(6, 16)
        self.fc2 = torch.nn.Linear(16, 4)

    def forward(self, x):
        return self.fc2(torch.tanh(self.fc1(x)))


def batches():
    g = torch.Generator().manual_seed(5)
    table = torch.randint(0, VOCABULARY, (VOCABULARY,), generator=g)
    out = torch.zeros(STEPS, BATCH, CONTEXT, dtype=torch.int64)
    for s in range(STEPS):
        for b in range(BATCH):
            token = int(torch.randint(0, VOCABULARY, (1,), generator=g))
            for t in range(CONTEXT):
                out[s, b, t] = token
                token = int(table[token])
    return out


def language_loss(model, ids):
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].reshape(-1, VOCABULARY), ids[:, 1:].reshape(-1))


def saved(model):
    """The two files of an adapter, as PEFT writes them: float32, which holds the numbers that training starts with exactly."""
    with tempfile.TemporaryDirectory() as folder:
        copy.deepcopy(model).float().save_pretrained(folder)
        return {
            "config": (Path(folder) / "adapter_config.json").read_text(),
            "weights": base64.b64encode((Path(folder) / "adapter_model.safetensors").read_bytes()).decode(),
        }


def train(model, loss_of, steps=STEPS):
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LR, weight_decay=0.0)
    losses = []
    for step in range(steps):
        optimizer.zero_grad()
        loss = loss_of(step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def randomise(model):
    """B of a new adapter is zero (A of an embedding's): other numbers show more from the first step on."""
    g = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():
        if "lora_" in name:
            p.data = (0.3 * torch.randn(p.shape, generator=g)).to(p.dtype)


def case(name, of, base, options, loss_of, logits_of):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(base, LoraConfig(**options))
    randomise(model)
    model.train()
    before = saved(model)
    losses = train(model, lambda step: loss_of(model, step))
    model.eval()
    with torch.no_grad():
        logits = logits_of(model)
    print(f"finetune {name}: {losses[0]:.4f} -> {losses[-1]:.4f}")
    return {"name": name, "base": of, "before": before, "losses": losses, "after": saved(model), "logits": record(logits.float())}


def lora_cases():
    ids = batches()
    language = dict(loss_of=lambda model, step: language_loss(model, ids[step]), logits_of=lambda model: model(input_ids=ids[0]).logits)
    g = torch.Generator().manual_seed(9)
    x = torch.randn(STEPS, 8, 6, generator=g)
    y = (x.sum(-1) > 0).long() + 2 * (x[..., 0] > 0).long()
    torch.manual_seed(21)
    plain = Plain().double()
    weights = lambda model: {k: record(v.float()) for k, v in model.state_dict().items() if k != "lm_head.weight"}
    return {
        "weights": {"gpt2": weights(gpt2()), "plain": weights(plain)},
        "ids": record(ids),
        "inputs": record(x),
        "classes": record(y),
        "cases": [
            case("gpt2 all-linear", "gpt2", gpt2().double(), dict(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM"), **language),
            case("gpt2 rslora, embeddings, biases", "gpt2", gpt2().double(), dict(r=3, lora_alpha=6, target_modules=["c_attn", "wte", "wpe"], bias="all", use_rslora=True), **language),
            case("gpt2 pattern, biases of the wrapped, norm saved", "gpt2", gpt2().double(), dict(r=2, lora_alpha=4, target_modules=r".*h\.1\.mlp\.c_(fc|proj)", bias="lora_only", modules_to_save=["ln_f"]), **language),
            case("plain module, head saved", "plain", plain, dict(r=2, lora_alpha=4, target_modules=["fc1"], modules_to_save=["fc2"]), loss_of=lambda model, step: F.cross_entropy(model(x[step].double()), y[step]), logits_of=lambda model: model(x[0].double())),
        ],
    }


def quantised():
    import bitsandbytes.functional as bnb

    g = torch.Generator().manual_seed(17)
    out = []
    for shape, scale in [((48, 64), 0.02), ((7, 9), 1.0), ((129, 128), 3.0)]:
        w = torch.randn(shape, generator=g) * scale
        w[0, :4] = torch.tensor([0.0, -0.0, 1e-9, -5.0 * scale])
        if shape == (48, 64):
            w[3] = 0  # a block of zeros
        row = {"weight": record(w)}
        for double in (False, True):
            packed, state = bnb.quantize_4bit(w, blocksize=64, quant_type="nf4", compress_statistics=double)
            entry = {"packed": record(packed.reshape(-1))}
            if w.numel() < 10000:
                entry["dequantized"] = record(bnb.dequantize_4bit(packed, state))
            if double:
                entry |= {"scaleCodes": record(state.absmax), "scaleAbsmax": record(state.state2.absmax), "offset": state.offset.item()}
            else:
                entry |= {"absmax": record(state.absmax)}
            row["double" if double else "single"] = entry
        if w.numel() < 10000:
            codes, scales, _ = bnb.int8_vectorwise_quant(w.half())
            row["int8"] = {"weight": record(w.half()), "codes": record(codes.to(torch.int32)), "absmax": record(scales)}
        out.append(row)
    return out


def wide():
    model = gpt2(64, 1)
    for p in model.parameters():  # numbers of 16 bits, which are stored in half the room
        p.data = (0.5 * p.data).half().float()
    return model


def qlora(double):
    """Linear layers of GPT-2 replaced by bitsandbytes' Linear4bit, as transformers' load_in_4bit does, then PEFT over them.

    The width is 64 because bitsandbytes 0.50 on a CPU dequantises matrices wrongly whose rows are shorter than a block.
    """
    import bitsandbytes as bnb
    from peft import LoraConfig, get_peft_model
    from transformers.pytorch_utils import Conv1D

    ids = batches()
    base = wide()
    for parent in list(base.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Conv1D):
                n, m = child.weight.shape
                layer = bnb.nn.Linear4bit(n, m, bias=True, compute_dtype=torch.float32, quant_type="nf4", compress_statistics=double)
                layer.weight = bnb.nn.Params4bit(child.weight.data.T.contiguous(), requires_grad=False, quant_type="nf4", compress_statistics=double)
                layer.bias = child.bias
                setattr(parent, name, layer.to("cpu"))
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_proj", "c_fc"]))
    randomise(model)
    model.train()
    before = saved(model)
    losses = train(model, lambda step: language_loss(model, ids[step]))
    print(f"finetune qlora double={double}: {losses[0]:.4f} -> {losses[-1]:.4f}")
    return {"doubleQuant": double, "before": before, "losses": losses}


def write(folder):
    import bitsandbytes
    import peft
    import transformers

    save(folder / "finetune.json", {
        "torch": torch.__version__.split("+")[0],
        "transformers": transformers.__version__,
        "peft": peft.__version__,
        "bitsandbytes": bitsandbytes.__version__,
        "config": {"width": WIDTH, "heads": HEADS, "layers": LAYERS, "vocabulary": VOCABULARY, "context": CONTEXT},
        "lr": LR,
        **lora_cases(),
        "nf4": quantised(),
        "dynamicCode": record(bitsandbytes.functional.create_dynamic_map()),
        "wide": {k: record(v.half()) for k, v in wide().state_dict().items() if k != "lm_head.weight"},
        "qlora": [qlora(False), qlora(True)],
    })
