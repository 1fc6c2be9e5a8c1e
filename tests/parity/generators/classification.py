"""Classifiers and vectors of texts: what transformers computes, for tests/parity/classification.test.ts.

The weights are those of fixtures/pretrained (pretrained.py writes them first) with a head that is stored here. With
NABLA_TEST_MINILM (the folder of all-MiniLM-L6-v2) also the vectors of some sentences, fixtures/minilm.json. Tables as pyarrow writes them
into Parquet, for tests/finetune/data.test.ts, go to fixtures/parquet. Needs transformers and pyarrow beside PyTorch.
"""

import os

import pyarrow
import pyarrow.parquet
import torch
import transformers
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from .encoding import record, save

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()
torch.set_num_threads(1)

DECODERS = ["gpt2", "llama", "qwen2", "gemma3", "phi3"]
LENGTHS = [12, 7, 1]
SENTENCES = [
    "The weather is lovely today.",
    "It's so sunny outside!",
    "He drove to the stadium.",
    "A café in Zürich, 東京 and a naïve résumé: $3.50 — isn't that cheap?",
    "word " * 300,
    "",
]


def classifier(root, name, labels, seed):
    model = AutoModelForSequenceClassification.from_pretrained(root / name, num_labels=labels, pad_token_id=0, dtype=torch.float32).eval()
    g = torch.Generator().manual_seed(seed)
    head = model.score.weight
    with torch.no_grad():
        head.copy_((torch.randn(head.shape, generator=g) * 0.3).to(torch.bfloat16).float())
    ids = torch.randint(3, 48, (len(LENGTHS), max(LENGTHS)), generator=g)
    mask = torch.zeros_like(ids)
    for row, length in enumerate(LENGTHS):
        ids[row, length:] = 0
        mask[row, :length] = 1
    targets = torch.tensor([2, 0, 1]) if labels > 1 else torch.tensor([0.5, -1.25, 3.0])
    with torch.no_grad():
        out = model(input_ids=ids, attention_mask=mask, labels=targets)
    assert model.config.problem_type == ("single_label_classification" if labels > 1 else "regression")
    return {
        "name": name,
        "score": record(head.detach()),
        "ids": record(ids),
        "mask": record(mask),
        "targets": record(targets),
        "logits": record(out.logits),
        "loss": out.loss.item(),
    }


def minilm(folder):
    """Mean of the states of the tokens that count, of length 1; a text ends after 256 tokens (sentence_bert_config.json)."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    out = []
    for text in SENTENCES:
        given = tokenizer(text, return_tensors="pt", truncation=True, max_length=256, padding=False)
        with torch.no_grad():
            vector = torch.nn.functional.normalize(model(**given).last_hidden_state.mean(1), dim=1)[0]
        out.append({"text": text, "ids": given["input_ids"][0].tolist(), "vector": record(vector[:24])})
    return out


TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def tables(folder):
    """Labelled texts in each compression and in row groups, and one table of each other kind of example, with values that are missing."""
    folder.mkdir(exist_ok=True)
    labelled = pyarrow.table({"text": ["one", 'é "two"\n', "three"], "label": pyarrow.array([1, 0, 10], pyarrow.int64()), "score": [0.5, -1.0, 2.25], "sure": [True, False, True]})
    for codec in ["snappy", "zstd", "gzip", "none"]:
        pyarrow.parquet.write_table(labelled, folder / f"labelled-{codec}.parquet", compression=codec, row_group_size=2)
    mixed = pyarrow.table({"text": ["a", None, None], "prompt": [None, "2+2=", None], "completion": [None, "4", None], "messages": [None, None, TALK]})
    pyarrow.parquet.write_table(mixed, folder / "mixed.parquet")
    choices = pyarrow.table({"prompt": ["2+2=", "3+3="], "choices": [["3", "4"], ["6", "7"]], "answer": pyarrow.array([1, 0], pyarrow.int32())})
    pyarrow.parquet.write_table(choices, folder / "choices.parquet")
    faulty = pyarrow.table({"text": ["one", None], "label": ["a", "b"], "answer": [1, 2]})
    pyarrow.parquet.write_table(faulty, folder / "faulty.parquet")


def write(fixtures):
    tables(fixtures / "parquet")
    cases = [classifier(fixtures / "pretrained", name, 3, i) for i, name in enumerate(DECODERS)]
    cases.append(classifier(fixtures / "pretrained", "llama", 1, 9))
    save(fixtures / "classification.json", {"cases": cases})
    folder = os.environ.get("NABLA_TEST_MINILM")
    if folder:
        save(fixtures / "minilm.json", {"sentences": minilm(folder)})
