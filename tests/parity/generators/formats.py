"""Files as PyTorch, NumPy and the gguf package write them, as base64, with what they hold.

Besides PyTorch and NumPy this section needs the gguf package (pip install gguf).
"""

import base64
import io
import tempfile
import zipfile
from collections import OrderedDict
from pathlib import Path

import gguf
import numpy as np
import torch

from .encoding import save

RANDOM = np.random.default_rng(7)


def text(data):
    return base64.b64encode(bytes(data)).decode()


def little(x):
    """The elements of an array in C order and little-endian."""
    x = np.ascontiguousarray(x)
    return text(x.astype(x.dtype.newbyteorder("<")).tobytes())


def quant_values(shape):
    """Values whose rounding is not trivial: of all magnitudes, zeros, ties, and blocks of one value."""
    x = RANDOM.standard_normal(shape).astype(np.float32)
    flat = x.reshape(-1)
    flat[0:32] = 0
    flat[32:64] = np.linspace(-8, 8, 32, dtype=np.float32)  # halves
    flat[64:96] = -1.5
    flat[96:128] *= 1e-6
    flat[128:160] *= 3e3
    flat[160:192] = np.arange(32) - 16  # ties of 4 bits
    flat[192:224] = (np.arange(32) * 4 - 63.5).astype(np.float32)
    flat[192] = 127  # a scale of 1: ties of 8 bits
    return x


def k_blocks(bytes_each, halves, rows):
    """Random blocks of a K type, whose scales (at `halves`) are plain numbers."""
    raw = RANDOM.integers(0, 256, (rows, bytes_each), dtype=np.uint8)
    for at in halves:
        raw[:, at : at + 2] = (RANDOM.standard_normal((rows, 1)) * 0.01).astype(np.float16).view(np.uint8)
    return raw


def write_gguf(path, alignment):
    writer = gguf.GGUFWriter(path, "test")
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_uint8("v.uint8", 200)
    writer.add_int8("v.int8", -100)
    writer.add_uint16("v.uint16", 60000)
    writer.add_int16("v.int16", -30000)
    writer.add_uint32("v.uint32", 4000000000)
    writer.add_int32("v.int32", -2000000000)
    writer.add_float32("v.float32", 0.1)
    writer.add_bool("v.bool", True)
    writer.add_string("v.string", "∇ grüße 你好")
    writer.add_uint64("v.uint64", 2**64 - 1)
    writer.add_int64("v.int64", -(2**63))
    writer.add_float64("v.float64", 0.1)
    writer.add_array("a.strings", ["<s>", "", "▁the"])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.ints", [1, -2, 3])
    writer.add_array("a.bools", [True, False])
    values = quant_values((2, 128))
    expected = {}
    types = gguf.GGMLQuantizationType
    for name in ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"]:
        kind = types[name]
        raw = gguf.quants.quantize(values, kind)
        if name in ("F32", "F16"):
            writer.add_tensor(f"t.{name.lower()}", raw)
        else:
            writer.add_tensor(f"t.{name.lower()}", raw.view(np.uint8), raw_dtype=kind)
        expected[f"t.{name.lower()}"] = {"shape": [2, 128], "float32": little(gguf.quants.dequantize(raw, kind).astype(np.float32))}
    for name, size, halves in [("Q4_K", 144, (0, 2)), ("Q5_K", 176, (0, 2)), ("Q6_K", 210, (208,))]:
        kind = types[name]
        raw = k_blocks(size, halves, 2)
        writer.add_tensor(f"t.{name.lower()}", raw, raw_dtype=kind)
        expected[f"t.{name.lower()}"] = {"shape": [2, 256], "float32": little(gguf.quants.dequantize(raw, kind))}
    writer.add_tensor("t.vector", np.arange(5, dtype=np.float32))
    expected["t.vector"] = {"shape": [5], "float32": little(np.arange(5, dtype=np.float32))}
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {"file": text(Path(path).read_bytes()), "values": little(values), "tensors": expected}


def torch_content():
    torch.manual_seed(3)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    weight = torch.nn.Parameter(torch.randn(3, 4))
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    return {
        "state_dict": module.state_dict(),
        "base": base,
        "transposed": base.t(),
        "strided": base[1:, ::2],
        "permuted": base.reshape(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.tensor([1.0, 2.0]).expand(3, 2),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "tied": [weight, weight],
        "dtypes": [
            torch.tensor([1.5, -2.25], dtype=dtype) for dtype in (torch.float64, torch.float16, torch.bfloat16)
        ]
        + [torch.tensor([1, -2, 100], dtype=dtype) for dtype in (torch.int64, torch.int32, torch.int16, torch.int8)]
        + [torch.tensor([1, 255], dtype=torch.uint8), torch.tensor([True, False])],
        "wide": torch.tensor([2**40, -1]),
        "unsigned": torch.tensor([1, 65535], dtype=torch.uint16),
        "plain": {"int": 7, "big": 2**62, "huge": -(2**80), "float": 0.1, "none": None, "yes": True, "text": "∇", "bytes": b"\x00\xff", 3: (1, (), [2])},
        "nobytes": b"",
    }


def flatten(value, path, out):
    if isinstance(value, torch.Tensor):
        x = value.detach().contiguous()
        raw = x.reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
        out[path] = {"dtype": str(x.dtype).replace("torch.", ""), "shape": list(x.shape), "data": text(raw), "requiresGrad": isinstance(value, torch.nn.Parameter)}
    elif isinstance(value, dict):
        for key, item in value.items():
            flatten(item, f"{path}.{key}" if path else str(key), out)
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            flatten(item, f"{path}.{i}", out)
    return out


def saved(content, **options):
    buffer = io.BytesIO()
    torch.save(content, buffer, **options)
    return buffer.getvalue()


def rezipped(data, change, method):
    """The same archive with other bytes or another method."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(out, "w", method) as new:
        for info in old.infolist():
            new.writestr(zipfile.ZipInfo(info.filename), change(info.filename, old.read(info)), method)
    return out.getvalue()


def torch_files():
    content = torch_content()
    zipped = saved(content)
    floats = {"x": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(), "y": torch.tensor([1.5], dtype=torch.float64)}

    def big(name, data):
        if name.endswith("/byteorder"):
            return b"big"
        return np.frombuffer(data, ">f4" if name.endswith("/0") else ">f8").astype("<f4" if name.endswith("/0") else "<f8").tobytes() if "/data/" in name else data

    big_endian = rezipped(saved(floats), big, zipfile.ZIP_STORED)
    loaded = torch.load(io.BytesIO(big_endian))
    assert all(torch.equal(loaded[key], floats[key]) for key in floats)
    legacy = {key: value for key, value in content.items() if key != "unsigned"}
    return {
        "files": {
            "zip": text(zipped),
            "legacy": text(saved(legacy, _use_new_zipfile_serialization=False)),
            "protocol 5": text(saved(content, pickle_protocol=5)),
            "deflated": text(rezipped(zipped, lambda _, data: data, zipfile.ZIP_DEFLATED)),
        },
        "tensors": flatten(content, "", {}),
        "big": {"file": text(big_endian), "tensors": flatten(floats, "", {})},
        "bare": text(saved(torch.arange(3, dtype=torch.int32))),
    }


def npy(x, version):
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, x, version=version)
    return text(buffer.getvalue())


def numpy_files():
    cases = []
    for kind in ["b1", "i1", "u1", "i2", "u2", "f2", "i4", "u4", "f4", "i8", "u8", "f8"]:
        x = (RANDOM.standard_normal((2, 3)) * 50).astype(kind)
        for order in "<>":
            for layout in "CF":
                y = np.array(x, dtype=np.dtype(kind).newbyteorder(order), order=layout)
                version = [(1, 0), (2, 0), (3, 0)][len(cases) % 3]
                cases.append({"kind": kind, "file": npy(y, version), "shape": [2, 3], "fortranOrder": layout == "F", "data": little(x)})
    for shape in [(), (0,), (5,), (0, 3), (2, 1, 3, 2)]:
        x = RANDOM.standard_normal(shape).astype(np.float32)
        cases.append({"kind": "f4", "file": npy(np.asarray(x), (1, 0)), "shape": list(shape), "fortranOrder": False, "data": little(x)})
    cube = np.asfortranarray(RANDOM.standard_normal((2, 3, 4)).astype(np.float32))
    cases.append({"kind": "f4", "file": npy(cube, (1, 0)), "shape": [2, 3, 4], "fortranOrder": True, "data": little(cube)})
    refused = {}
    for name, x in [("complex", np.zeros(2, np.complex64)), ("text", np.array(["a"])), ("structure", np.zeros(1, [("x", "f4")])), ("date", np.zeros(1, "M8[s]"))]:
        refused[name] = npy(x, (1, 0))
    buffer = io.BytesIO()
    np.save(buffer, np.array([print], dtype=object))
    refused["objects"] = text(buffer.getvalue())
    arrays = {"weight": RANDOM.standard_normal((3, 4)).astype(np.float32), "ids": np.arange(5, dtype=np.int64), "flags": np.array([True, False]), "zeros": np.zeros((40, 25))}
    stored, packed = io.BytesIO(), io.BytesIO()
    np.savez(stored, **arrays)
    np.savez_compressed(packed, **arrays)
    wide = io.BytesIO()
    limit, zipfile.ZIP_FILECOUNT_LIMIT = zipfile.ZIP_FILECOUNT_LIMIT, 1  # makes Python write the records of zip64
    np.savez(wide, **arrays)
    zipfile.ZIP_FILECOUNT_LIMIT = limit
    return {
        "npy": cases,
        "refused": refused,
        "npz": {
            "files": {"stored": text(stored.getvalue()), "deflated": text(packed.getvalue()), "zip64": text(wide.getvalue())},
            "arrays": {name: {"kind": x.dtype.str[1:], "shape": list(x.shape), "data": little(x)} for name, x in arrays.items()},
        },
    }


def write(folder):
    with tempfile.TemporaryDirectory() as room:
        files = [write_gguf(str(Path(room) / f"{alignment}.gguf"), alignment) for alignment in (None, 64)]
    save(folder / "formats.json", {"gguf": files, "torch": torch_files(), "numpy": numpy_files()})
