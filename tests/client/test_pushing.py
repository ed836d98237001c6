from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from fleetfit.client.client import Client
from fleetfit.client.pushing import check_npz, is_factory, open_source, part_file, read_samples
from fleetfit.core.errors import FleetfitError, InvalidData, InvalidInput, InvalidModel, NotFound, UnsupportedHere
from fleetfit.proto.v1 import common_pb2, models_pb2


def quiet(activity: str, fraction: float | None, remaining_s: float | None) -> None: ...


@pytest.mark.parametrize("text", ["module:make", "package.module:make", "nothing:here"])
def test_a_factory_is_known_by_its_colon(text: str) -> None:
    assert is_factory(text)


@pytest.mark.parametrize("text", ["net.pt2", "dir/net.onnx", "c:/net.pt2", "a:b/net.onnx", ":make", "module:", "net"])
def test_a_file_is_no_factory(text: str) -> None:
    assert not is_factory(text)


def test_a_model_file_suggests_its_name(tmp_path: Path) -> None:
    file = tmp_path / "my net.ONNX"
    file.write_bytes(b"content")
    with open_source(str(file), None, quiet) as source:
        assert (source.path, source.name, source.format) == (file, "my net", "onnx")


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("net.pt", b"x", InvalidModel, "is no model"),
        ("net.pt2", None, InvalidInput, "there is no file"),
        ("net.pt2", b"", InvalidInput, "is empty"),
    ],
)
def test_what_is_no_model_file(
    tmp_path: Path, name: str, content: bytes | None, kind: type[FleetfitError], words: str
) -> None:
    file = tmp_path / name
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(kind, match=words), open_source(str(file), None, quiet):
        pass


def test_a_folder_named_like_a_model_is_none(tmp_path: Path) -> None:
    (tmp_path / "net.pt2").mkdir()
    with pytest.raises(InvalidInput, match="is not a file"), open_source(str(tmp_path / "net.pt2"), None, quiet):
        pass


def test_a_factory_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFound, match="no module"), open_source("no_such_module_here:make", None, quiet):
        pass


def test_a_factory_without_samples_takes_them_from_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_net_module.py").write_text(
        "import torch\ndef make():\n    return torch.nn.Linear(3, 2)\ndef without():\n    return torch.nn.Linear(3, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "d.npz", input=np.zeros((9, 3), np.float32), targets=np.zeros(9, np.int64))
    with pytest.raises(InvalidModel, match="--samples"), open_source("own_net_module:make", None, quiet):
        pass
    with open_source("own_net_module:make", tmp_path / "d.npz", quiet) as source:
        assert source.name == "own_net_module" and zipfile.is_zipfile(source.path)
        made = source.path
    assert not made.exists(), "the exported file is temporary"


def test_samples_are_two_rows_without_the_targets(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros((9, 3), np.float32), targets=np.zeros(9))
    samples = read_samples(tmp_path / "d.npz")
    assert list(samples) == ["x"] and tuple(samples["x"].shape) == (2, 3)
    (tmp_path / "bad.npz").write_bytes(b"PK no zip")
    with pytest.raises(InvalidData, match="not an .npz"):
        read_samples(tmp_path / "bad.npz")


def test_an_npz_is_sent_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", x=np.zeros(3))
    with check_npz(tmp_path / "d.npz") as path:
        assert path == tmp_path / "d.npz"


def test_a_folder_of_arrays_becomes_one_npz_always_the_same(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    np.save(folder / "x.npy", np.arange(6.0).reshape(2, 3))
    np.save(folder / "targets.npy", np.array([0, 1]))
    (folder / "notes.txt").write_text("not an array")
    contents = []
    for _ in range(2):
        with check_npz(folder) as path:
            contents.append(path.read_bytes())
            with np.load(path) as arrays:
                assert sorted(arrays.files) == ["targets", "x"]
                assert arrays["x"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
        (folder / "x.npy").touch()
    assert contents[0] == contents[1]


@pytest.mark.parametrize("content", [b"not a zip", None, b""])
def test_what_is_no_data(tmp_path: Path, content: bytes | None) -> None:
    file = tmp_path / "d.npz"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(InvalidInput), check_npz(file):
        pass


def test_an_empty_folder_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"holds no \.npy files"), check_npz(tmp_path):
        pass


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        (
            "pre.pt2",
            b"x",
            InvalidModel,
            "cannot be the pre part, which is an .onnx file; make one with torch.onnx.export",
        ),
        ("pre.onnx", None, InvalidInput, "there is no file"),
        ("pre.onnx", b"", InvalidInput, "is empty"),
    ],
)
def test_what_is_no_part(
    tmp_path: Path, name: str, content: bytes | None, kind: type[FleetfitError], words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(kind, match=words) as refused:
        part_file(tmp_path / name, "pre")
    assert refused.value.field == "pre"


class Answering:
    """The connection to a server that answers a push in its way, whatever is sent."""

    def __init__(self, answer: Callable[[models_pb2.PushModelRequest], models_pb2.Model]) -> None:
        self._answer = answer
        self.uploaded: list[str] = []

    def stub(self, kind: Any) -> Any:
        return type("Stub", (), {"__getattr__": lambda self, name: name})()

    def upload(self, path: Path, told: Any) -> common_pb2.ArtifactRef:
        self.uploaded.append(path.name)
        return common_pb2.ArtifactRef(sha256=path.stem, size_bytes=path.stat().st_size)

    def follow(self, call: Any, request: models_pb2.PushModelRequest) -> Iterator[models_pb2.PushModelResponse]:
        yield models_pb2.PushModelResponse(model=self._answer(request))


def accepted(request: models_pb2.PushModelRequest) -> models_pb2.Model:
    model = models_pb2.Model(name=request.name, state=models_pb2.INTAKE_STATE_ACCEPTED)
    for name, artifact in (("pre", request.pre), ("post", request.post)):
        if artifact.sha256:
            (model.pre if name == "pre" else model.post).artifact.CopyFrom(artifact)
    return model


def test_parts_are_sent_with_the_model_and_an_older_server_is_told_apart(tmp_path: Path) -> None:
    for name in ("net", "scale", "boxes"):
        (tmp_path / f"{name}.onnx").write_bytes(b"content")
    parts = {"pre": tmp_path / "scale.onnx", "post": tmp_path / "boxes.onnx"}
    today = Answering(accepted)
    model = Client(cast(Any, today)).push_model(tmp_path / "net.onnx", **parts)
    assert (model.pre.artifact.sha256, model.post.artifact.sha256) == ("scale", "boxes")
    assert sorted(today.uploaded) == ["boxes.onnx", "net.onnx", "scale.onnx"]
    older = Client(cast(Any, Answering(lambda request: models_pb2.Model(state=models_pb2.INTAKE_STATE_ACCEPTED))))
    with pytest.raises(UnsupportedHere, match="the server is older and has left --pre and --post out"):
        older.push_model(tmp_path / "net.onnx", **parts)
    assert older.push_model(tmp_path / "net.onnx").state == models_pb2.INTAKE_STATE_ACCEPTED
