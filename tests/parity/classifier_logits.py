"""Loads classifiers that Nabla wrote with transformers and writes what they give: python classifier_logits.py FOLDER…

A folder is a checkpoint, with input.json beside it: ids and mask. Writes logits.json, with the names of the classes.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification

for folder in map(Path, sys.argv[1:]):
    given = json.loads((folder / "input.json").read_text())
    model, about = AutoModelForSequenceClassification.from_pretrained(folder, output_loading_info=True, dtype=torch.float32)
    assert not about["missing_keys"] and not about["unexpected_keys"], about
    with torch.no_grad():
        logits = model.eval()(input_ids=torch.tensor(given["ids"]), attention_mask=torch.tensor(given["mask"])).logits
    names = [model.config.id2label[i] for i in range(model.config.num_labels)]
    out = {"logits": logits.tolist(), "labels": names, "problem": model.config.problem_type}
    (folder / "logits.json").write_text(json.dumps(out))
