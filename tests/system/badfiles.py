"""A small good model with good data, and everything that can be wrong with such files."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

import fleetfit

FEATURES, CLASSES = 16, 4
# One sample becomes so many floats within the model: 160 MB from a file of 250 bytes.
WIDE = 2_500_000

BRANCHY = """import torch


class Branchy(torch.nn.Module):
    def forward(self, features):
        if features.sum() > 0:
            return features
        return -features


def make():
    return Branchy(), torch.ones(2, 4)
"""


class Evil:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trace),)


def arrays(count: int = 120) -> dict[str, NDArray[Any]]:
    """Samples whose class is the largest of their first features."""
    features = np.random.default_rng(0).standard_normal((count, FEATURES)).astype(np.float32)
    return {"features": features, "targets": np.argmax(features[:, :CLASSES], 1)}


def save_onnx(path: Path, nodes: list[Any], weights: list[Any], width: int, domain: str = "") -> Path:
    """One ONNX file that takes `features`."""
    features = helper.make_tensor_value_info("features", TensorProto.FLOAT, ["N", FEATURES])
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, ["N", width])
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    model = helper.make_model(helper.make_graph(nodes, "g", [features], [output], weights), opset_imports=opsets)
    model.ir_version = 8
    onnx.save(model, path)
    return path


def _whole(name: str, *values: int) -> Any:
    return numpy_helper.from_array(np.array(values, np.int64), name)


def make_onnx(folder: Path) -> None:
    """`net.onnx` is right in all it says; the others cannot be run, by anyone or by a small device."""
    weight = numpy_helper.from_array(np.eye(FEATURES, CLASSES, dtype=np.float32), "w")
    save_onnx(folder / "net.onnx", [helper.make_node("MatMul", ["features", "w"], ["output"])], [weight], CLASSES)
    nodes = [
        helper.make_node("Unsqueeze", ["features", "axis"], ["column"]),
        helper.make_node("Expand", ["column", "shape"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["positive"]),
        helper.make_node("ReduceMax", ["positive"], ["output"], axes=[2], keepdims=0),
    ]
    save_onnx(folder / "huge.onnx", nodes, [_whole("axis", 2), _whole("shape", 1, 1, WIDE)], FEATURES)
    for name, domain in (("foreign", "my.own"), ("unknown", "com.microsoft")):
        node = helper.make_node("Fancy", ["features"], ["output"], domain=domain)
        save_onnx(folder / f"{name}.onnx", [node], [], FEATURES, domain)


def make_archives(folder: Path) -> None:
    """`good.pt2`, and archives that differ from it in one thing each."""
    model = torch.nn.Sequential(torch.nn.Linear(FEATURES, CLASSES))
    good = fleetfit.export(model, (torch.ones(2, FEATURES),), folder / "good.pt2")
    content = good.read_bytes()
    (folder / "cut.pt2").write_bytes(content[: len(content) // 2])
    with zipfile.ZipFile(good) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(entries)).split("/")[0]

    def change(name: str, entry: str, value: bytes) -> None:
        with zipfile.ZipFile(folder / name, "w") as archive:
            for key, old in (entries | {f"{root}/{entry}": value}).items():
                archive.writestr(key, value if key == f"{root}/{entry}" else old)

    evil = Evil(folder / "ran")
    change("pickle.pt2", "data.pkl", pickle.dumps(evil))
    samples = io.BytesIO()
    torch.save(evil, samples)
    change("samples.pt2", "data/sample_inputs/model.pt", samples.getvalue())
    program = json.loads(entries[f"{root}/models/model.json"])
    newer = program | {"torch_version": "9.9.0", "schema_version": {"major": 99, "minor": 0}}
    change("newer.pt2", "models/model.json", json.dumps(newer).encode())
    change("layout.pt2", "archive_version", b"9")
    with zipfile.ZipFile(folder / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{root}/data/weights/weight_0", bytes(100 << 20))


def make_data(folder: Path) -> None:
    """`data.npz` fits `net.onnx`; the others do not."""
    good = arrays()
    features, targets = good["features"], good["targets"]
    broken = features.copy()
    broken[3, 2] = np.nan
    objects = np.array([{}] * len(targets), dtype=object)
    for name, content in {
        "data": good,
        "shape": {"features": features[:, :8], "targets": targets},
        "dtype": {"features": features.astype(np.float64), "targets": targets},
        "classes": {"features": features, "targets": targets + 3},
        "nan": {"features": broken, "targets": targets},
        "empty": {"features": features[:0], "targets": targets[:0]},
        "objects": {"features": features, "targets": objects},
        "uneven": {"features": features, "targets": targets[:-1]},
        "renamed": {"pixels": features, "targets": targets},
    }.items():
        np.savez(folder / f"{name}.npz", **content)
    (folder / "half.npz").write_bytes((folder / "data.npz").read_bytes()[:3000])
    (folder / "words.npz").write_text("hello")


def make_recipes(folder: Path) -> None:
    """`int8.yaml` is good; the others are not."""
    for name, steps in {
        "int8": "  - quantize: {dtype: int8, mode: dynamic}",
        "pass": "  - shrink: {ratio: 0.5}",
        "key": "  - activation_pruning: {ratoi: 0.5}",
        "value": "  - activation_pruning: {ratio: 7}",
    }.items():
        (folder / f"{name}.yaml").write_text(f"name: {name}\nsteps:\n{steps}\n")
    (folder / "text.yaml").write_text("name: [r\n")
    (folder / "top.yaml").write_text("name: top\nstep:\n  - distill: {}\n")


def make_files(folder: Path) -> Path:
    """All of it."""
    make_onnx(folder)
    make_archives(folder)
    make_data(folder)
    make_recipes(folder)
    (folder / "branchy.py").write_text(BRANCHY)
    return folder
