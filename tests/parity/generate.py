"""Writes the parity fixtures: what PyTorch computes, for the tests beside this file to compare with.

Run with a Python that has PyTorch 2 (CPU):  python tests/parity/generate.py [section ...]
Without arguments every section is written. The fixtures are committed; the tests need no Python.
"""

import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

SECTIONS = ["primitives", "composites", "tensors", "layers", "recurrent", "training", "gpt", "formats", "finetune", "pretrained", "adapters", "tokenizers", "chat_templates", "generation", "classification", "small_models", "mixed"]

if __name__ == "__main__":
    for section in sys.argv[1:] or SECTIONS:
        importlib.import_module(f"generators.{section}").write(Path(__file__).parent / "fixtures")
