"""Loads an adapter written by Nabla with PEFT and writes the logits that it gives: python peft_logits.py FOLDER.

The folder holds base.safetensors, the adapter's two files, and input.json with ids and the sizes of the GPT-2.
"""

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import GPT2Config, GPT2LMHeadModel

folder = Path(sys.argv[1])
given = json.loads((folder / "input.json").read_text())
c = given["config"]
model = GPT2LMHeadModel(GPT2Config(vocab_size=c["vocabulary"], n_positions=c["context"], n_embd=c["width"], n_layer=c["layers"], n_head=c["heads"], bos_token_id=0, eos_token_id=0))
missing, unexpected = model.load_state_dict(load_file(folder / "base.safetensors"), strict=False)
assert set(missing) <= {"lm_head.weight"} and not unexpected, (missing, unexpected)
model.tie_weights()
tuned = PeftModel.from_pretrained(model, folder).eval()
with torch.no_grad():
    logits = tuned(input_ids=torch.tensor(given["ids"])).logits
(folder / "logits.json").write_text(json.dumps(logits.tolist()))
