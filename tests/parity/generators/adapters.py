"""Adapters that PEFT writes with options of many kinds, over checkpoints of the section "pretrained", and the logits that they give there.

Needs transformers and peft beside torch.
"""

import base64
import json
import tempfile
import warnings
from pathlib import Path

import torch

from .encoding import record, save

warnings.filterwarnings("ignore")
QV = ["q_proj", "v_proj"]
SENTENCES = {"task_type": "SEQ_CLS", "target_modules": ["q_lin", "v_lin"]}
CASES = [
    ("llama", "ranks and alphas of their own", {"target_modules": QV, "rank_pattern": {"q_proj": 1, "layers.1.self_attn.v_proj": 3}, "alpha_pattern": {".*\\.0\\..*v_proj": 5}, "use_rslora": True}),
    ("llama", "one layer of several", {"target_modules": QV, "layers_to_transform": 1}),
    ("llama", "layers by the name before their number", {"target_modules": QV, "layers_to_transform": [0], "layers_pattern": "layers"}),
    ("llama", "a pattern that leaves out", {"target_modules": QV, "exclude_modules": ".*\\.1\\..*q_proj"}),
    ("llama", "norms saved by the end of their names", {"target_modules": QV, "modules_to_save": ["norm"]}),
    ("llama", "an adapted head", {"target_modules": ["lm_head", "q_proj"]}),
    ("llama", "the older file", {"target_modules": QV}),
    ("llama", "weights of the model's own changed", {"target_modules": QV, "init_lora_weights": "pissa"}),
    ("distilbert", "a classifier", SENTENCES),
    ("distilbert", "a classifier with its biases", {**SENTENCES, "bias": "all"}),
]


def adapter(folder, base, options, older):
    """Writes an adapter of random numbers into a folder; gives the logits of the model with it, loaded again."""
    from peft import LoraConfig, PeftModel, get_peft_model
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    kind = AutoModelForSequenceClassification if base == "distilbert" else AutoModelForCausalLM
    checkpoint = Path(__file__).parent.parent / "fixtures" / "pretrained" / base
    tuned = get_peft_model(kind.from_pretrained(checkpoint, dtype=torch.float32), LoraConfig(r=2, lora_alpha=3, **options))
    generator = torch.Generator().manual_seed(7)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    tuned.save_pretrained(folder)
    again = PeftModel.from_pretrained(kind.from_pretrained(checkpoint, dtype=torch.float32), folder).eval()
    if older:  # what PEFT wrote before it wrote safetensors
        torch.save(load_file(folder / "adapter_model.safetensors"), folder / "adapter_model.bin")
        (folder / "adapter_model.safetensors").unlink()
    ids = torch.randint(3, again.config.vocab_size, (2, 6), generator=generator)
    with torch.no_grad():
        logits = again(input_ids=ids).logits
    return ids, logits if logits.dim() == 2 else logits[:, -1]


def write(fixtures):
    cases = []
    for base, name, options in CASES:
        with tempfile.TemporaryDirectory() as room:
            folder = Path(room)
            ids, logits = adapter(folder, base, options, name == "the older file")
            config = json.loads((folder / "adapter_config.json").read_text()) | {"base_model_name_or_path": base}
            file = next(folder.glob("adapter_model.*"))
            weights = {"file": file.name, "data": base64.b64encode(file.read_bytes()).decode()}
            cases.append({"name": name, "base": base, "config": config, "weights": weights, "ids": record(ids), "logits": record(logits)})
    save(fixtures / "adapters.json", {"cases": cases})
