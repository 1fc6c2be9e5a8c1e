"""Tensors as JSON: dtype, shape and the base64 of raw little-endian elements."""

import base64
import json

import torch

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "uint32": torch.uint32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}
FLOATS = ["float32", "float64", "float16", "bfloat16"]
INTEGERS = ["int32", "uint32", "uint8"]


def data(x):
    flat = x.detach().contiguous().reshape(-1)
    if flat.dtype == torch.bool:
        flat = flat.to(torch.uint8)
    raw = flat.view(torch.uint8) if flat.numel() else torch.empty(0, dtype=torch.uint8)
    return base64.b64encode(raw.numpy().tobytes()).decode()


def record(x):
    if x.dtype == torch.int64:
        x = x.to(torch.int32)
    return {"dtype": NAMES[x.dtype], "shape": list(x.shape), "data": data(x)}


def save(path, content):
    text = json.dumps(content, separators=(",", ":"), allow_nan=False)
    path.write_text(text + "\n")
    print(f"{path.name}: {len(text) / 1024:.0f} KiB")
