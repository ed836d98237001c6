from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from fleetfit.client.pulling import _script, place_build, place_variant
from fleetfit.core.errors import AlreadyExists, ExhaustedResource, IntegrityError, Unavailable
from fleetfit.proto.v1 import common_pb2, models_pb2, reports_pb2


@pytest.fixture(scope="module")
def build() -> bytes:
    """A linear model with two inputs: output = a + b, batch free."""
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("a", "b", "output")]
    graph = helper.make_graph([helper.make_node("Add", ["a", "b"], ["output"])], "sum", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def answer(build: bytes, name: str = "m-pruned.onnx", sha256: str = "") -> reports_pb2.GetBuildResponse:
    digest = hashlib.sha256(build).hexdigest()
    inputs = [{"name": n, "dtype": "float32", "shape": [-1, 3]} for n in ("a", "b")]
    manifest = {
        "schema": 1,
        "device": "pi",
        "files": {name: {"sha256": sha256 or digest, "size_bytes": len(build)}},
        "inputs": inputs,
        "outputs": [{"name": "output", "dtype": "float32", "shape": [-1, 3]}],
        "options": {"threads": 2, "batch": 2},
    }
    artifact = common_pb2.ArtifactRef(sha256=digest, size_bytes=len(build))
    named = common_pb2.NamedArtifact(name=name, artifact=artifact)
    return reports_pb2.GetBuildResponse(build=named, manifest_json=json.dumps(manifest))


def arriving(content: bytes) -> Callable[[common_pb2.ArtifactRef, Path], None]:
    def download(artifact: common_pb2.ArtifactRef, path: Path) -> None:
        path.write_bytes(content)

    return download


def test_the_folder_holds_build_manifest_and_run_py(tmp_path: Path, build: bytes) -> None:
    pulled = place_build(answer(build), tmp_path / "new" / "out", arriving(build))
    assert sorted(file.name for file in pulled.folder.iterdir()) == [
        "check.py",
        "m-pruned.onnx",
        "manifest.json",
        "run.py",
    ]
    manifest = json.loads((pulled.folder / "manifest.json").read_text())
    assert manifest["build"] == "m-pruned.onnx"
    assert len((pulled.folder / "run.py").read_text().splitlines()) <= 12
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["out"], "nothing else is left"


def test_run_py_runs_with_onnxruntime_and_numpy_alone(tmp_path: Path, build: bytes) -> None:
    folder = place_build(answer(build), tmp_path / "out", arriving(build)).folder
    arrays = {
        "a": np.arange(12, dtype=np.float32).reshape(4, 3),
        "b": np.ones((4, 3), np.float32),
        "targets": np.zeros(4),
    }
    np.savez(tmp_path / "data.npz", **arrays)
    guard = "import sys; [sys.modules.__setitem__(n, None) for n in ('fleetfit', 'torch', 'onnx')]; sys.argv = sys.argv[1:]; "
    run = "import runpy; runpy.run_path(sys.argv[0], run_name='__main__')"
    command = [sys.executable, "-c", guard + run, str(folder / "run.py")]
    # From elsewhere: run.py finds its files by its own place.
    for given, expected in (([], 0.0), ([str(tmp_path / "data.npz")], 1.0)):
        done = subprocess.run([*command, *given], capture_output=True, text=True, cwd="/")
        assert done.returncode == 0, done.stderr
        outputs = eval(done.stdout)  # the script's own dictionary
        assert np.shape(outputs["output"]) == (2, 3), "the batch that was measured"
        assert outputs["output"][0][0] == expected


def part(kind: str, takes: tuple[str, int], gives: tuple[str, int], **attributes: Any) -> bytes:
    infos = [helper.make_tensor_value_info(name, dtype, ["batch", 3]) for name, dtype in (takes, gives)]
    graph = helper.make_graph(
        [helper.make_node(kind, [takes[0]], [gives[0]], **attributes)], "part", infos[:1], infos[1:]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(model.SerializeToString())


def chain_answer(build: bytes, parts: Mapping[str, bytes]) -> reports_pb2.GetBuildResponse:
    """`answer` of a sum of `a` and `b` that has parts."""
    found = answer(build)
    manifest = json.loads(found.manifest_json) | {"runtime": "onnxruntime", "parts": {}}
    takes = {"pre": ("bytes", "uint8"), "post": ("output", "float32")}
    for name, content in parts.items():
        digest = hashlib.sha256(content).hexdigest()
        inputs = [{"name": takes[name][0], "dtype": takes[name][1], "shape": [-1, 3]}]
        manifest["parts"][name] = {"file": f"{name}.onnx", "sha256": digest, "inputs": inputs, "outputs": []}
        artifact = common_pb2.ArtifactRef(sha256=digest, size_bytes=len(content))
        found.parts.add(name=f"{name}.onnx", artifact=artifact)
    found.manifest_json = json.dumps(manifest)
    return found


@pytest.fixture(scope="module")
def parts() -> dict[str, bytes]:
    """`bytes` become `a` and `b`; the sum's sign is what comes out."""
    cast = helper.make_node("Cast", ["bytes"], ["a"], to=TensorProto.FLOAT)
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("a", "b")]
    taken = helper.make_tensor_value_info("bytes", TensorProto.UINT8, ["batch", 3])
    graph = helper.make_graph([cast, helper.make_node("Neg", ["a"], ["b"])], "pre", [taken], infos)
    pre = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    post = part("Cos", ("output", TensorProto.FLOAT), ("sign", TensorProto.FLOAT))
    return {"pre": bytes(pre.SerializeToString()), "post": post}


def sent(*contents: bytes) -> Callable[[common_pb2.ArtifactRef, Path], None]:
    def download(artifact: common_pb2.ArtifactRef, path: Path) -> None:
        path.write_bytes(next(one for one in contents if hashlib.sha256(one).hexdigest() == artifact.sha256))

    return download


@pytest.mark.parametrize("runtime", ["onnxruntime", "elsewhere"])
def test_run_py_runs_the_chain_of_parts(tmp_path: Path, build: bytes, parts: dict[str, bytes], runtime: str) -> None:
    given = chain_answer(build, parts)
    folder = place_build(given, tmp_path / "out", sent(build, *parts.values())).folder
    assert sorted(file.name for file in folder.iterdir()) == [
        "check.py", "m-pruned.onnx", "manifest.json", "post.onnx", "pre.onnx", "run.py",
    ]  # fmt: skip
    if runtime == "elsewhere":
        (folder / "run.py").write_text(_script({"runtime": "another", "parts": {"pre": {}}}))
    np.savez(tmp_path / "data.npz", bytes=np.arange(12, dtype=np.uint8).reshape(4, 3))
    for inputs in ([], [str(tmp_path / "data.npz")]):
        done = subprocess.run(
            [sys.executable, str(folder / "run.py"), *inputs], capture_output=True, text=True, cwd="/"
        )
        assert done.returncode == 0, done.stderr
        # a + b is 0 whatever comes in, and the cosine of that is 1.
        assert eval(done.stdout) == {"sign": [[1.0] * 3] * 2}


def test_parts_that_the_manifest_does_not_name_are_refused(
    tmp_path: Path, build: bytes, parts: dict[str, bytes]
) -> None:
    for change in ("digest", "name", "missing", "elsewhere"):
        given = chain_answer(build, parts)
        manifest = json.loads(given.manifest_json)
        if change == "digest":
            given.parts[0].artifact.sha256 = "0" * 64
        elif change == "name":
            given.parts[0].name = "other.onnx"
        elif change == "missing":
            del given.parts[0]
        else:
            manifest["parts"]["../pre"] = manifest["parts"].pop("pre") | {"file": "../pre.onnx"}
            given.parts[0].name = "../pre.onnx"
        given.manifest_json = json.dumps(manifest)
        with pytest.raises(IntegrityError, match="pre and post"):
            place_build(given, tmp_path / "out", sent(build, *parts.values()))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_not_empty_is_left_alone(tmp_path: Path, build: bytes) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(AlreadyExists, match="not an empty folder"):
        place_build(answer(build), tmp_path, arriving(build))
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]


def test_an_empty_folder_is_used(tmp_path: Path, build: bytes) -> None:
    (tmp_path / "out").mkdir()
    assert place_build(answer(build), tmp_path / "out", arriving(build)).build.is_file()


def test_another_content_than_announced_leaves_nothing(tmp_path: Path, build: bytes) -> None:
    with pytest.raises(IntegrityError, match="not what arrived"):
        place_build(answer(build), tmp_path / "out", arriving(build + b"x"))
    assert list(tmp_path.iterdir()) == []


def test_a_manifest_of_another_build_is_refused(tmp_path: Path, build: bytes) -> None:
    with pytest.raises(IntegrityError, match="digests differ"):
        place_build(answer(build, sha256="0" * 64), tmp_path / "out", arriving(build))


@pytest.mark.parametrize("name", ["", "..", "../x.onnx", "a/b.onnx", "/etc/x", "run.py", "manifest.json"])
def test_a_server_cannot_write_elsewhere(tmp_path: Path, build: bytes, name: str) -> None:
    with pytest.raises(IntegrityError, match="no file name"):
        place_build(answer(build, name=name), tmp_path / "out", arriving(build))
    assert list(tmp_path.iterdir()) == []


def test_a_lost_download_leaves_nothing(tmp_path: Path, build: bytes) -> None:
    def lost(artifact: common_pb2.ArtifactRef, path: Path) -> None:
        path.write_bytes(build[:10])
        raise Unavailable("gone; try again")

    with pytest.raises(Unavailable):
        place_build(answer(build), tmp_path / "out", lost)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_says_so(tmp_path: Path, build: bytes) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExhaustedResource, match="cannot be written"):
        place_build(answer(build), tmp_path / "file" / "out", arriving(build))


def test_a_variant_comes_with_its_lineage_its_recipe_and_a_way_to_train_it(tmp_path: Path, build: bytes) -> None:
    artifact = common_pb2.ArtifactRef(sha256=hashlib.sha256(build).hexdigest(), size_bytes=len(build))
    given = models_pb2.GetVariantResponse(variant="ab" * 32, trainable=artifact, lineage_json="{}", recipe="name: a\n")
    with pytest.raises(IntegrityError, match="not what arrived"):
        place_variant(given, tmp_path / "out", arriving(build + b"x"))
    assert list(tmp_path.iterdir()) == []
    pulled = place_variant(given, tmp_path / "out", arriving(build))
    assert (pulled.network.read_bytes(), pulled.variant) == (build, "ab" * 32)
    others = {file.name: file.read_text() for file in pulled.folder.iterdir() if file != pulled.network}
    assert (others.pop("lineage.json"), others.pop("recipe.yaml")) == ("{}\n", "name: a\n")
    assert list(others) == ["train.py"] and compile(others["train.py"], "train.py", "exec")
    with pytest.raises(AlreadyExists):
        place_variant(given, tmp_path / "out", arriving(build))
