"""The torch_tensorrt adapter: its table of releases, its call beside the wheels' own, and its own work on constructed modules.

Nothing here was run on a GPU (see constructed/ and constructed_torch/).
"""

from __future__ import annotations

import ast
import inspect
import json
import logging
import os
import platform
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from importlib import invalidate_caches
from importlib.metadata import version as version_here
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.children import ENGINES_VARIABLE
from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes import aten, cuda, torch_tensorrt, torch_tensorrt_builder, torch_tensorrt_library
from fleetfit.runtimes.aten import Node
from fleetfit.runtimes.contract import is_one_sentence, rows
from fleetfit.runtimes.refusal import Port
from fleetfit.runtimes.samples import WEIGHTS, aten_affine, aten_build
from fleetfit.runtimes.tensorrt_library import version_of
from fleetfit.runtimes.torch_tensorrt import TorchTensorRt
from fleetfit.runtimes.torch_tensorrt_library import RELEASES, Facts, Release, board_of, unmatched

from .contract import RuntimeContract
from .signatures import fits
from .torch_tensorrt_signatures import CALL, KEPT

HERE = Path(__file__).parent
ADAPTER = TorchTensorRt()
WHEELS: list[dict[str, Any]] = json.loads(KEPT.read_text())
GPUS = {"orin": "sm_87x16", "sbsa": "sm_110x20", "x86_64": "sm_90x132"}


def facts_of(release: Release) -> Facts:
    """A machine for which it is."""
    return Facts(
        f"{release.torch_tensorrt[0]}.{release.torch_tensorrt[1]}.0",
        f"{release.torch[0]}.{release.torch[1]}.0",
        f"{release.tensorrt[0]}.{release.tensorrt[1]}.0",
        f"{release.cuda}.6",
        GPUS[release.board],
        "x86_64" if release.board == "x86_64" else "aarch64",
        36 if release.board == "orin" else None,
        (3, 10),
    )


ORIN = facts_of(RELEASES[0])


@pytest.mark.parametrize("release", RELEASES, ids=lambda one: f"{one.torch_tensorrt[1]}-{one.board}")
def test_each_line_is_what_its_source_says(release: Release) -> None:
    assert unmatched(facts_of(release)) == ""
    numbers = [release.torch[1], *release.tensorrt]
    assert release.quote and all(str(number) in release.quote for number in numbers), release
    if release.board == "orin":
        assert release.source.startswith("https://") and "CUDA 12.6" in release.quote
        return
    # What is said of wheels, wheels say.
    major, minor = release.torch_tensorrt
    wheel = next(one for one in WHEELS if one["version"].startswith(f"{major}.{minor}."))
    said = " ".join(wheel["requires"])
    assert f">={major}.{minor}.0" in said and f">={release.tensorrt[0]}.{release.tensorrt[1]}" in said
    assert wheel["cuda"].split(".")[0] == str(release.cuda)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"torch_tensorrt": "2.9.0", "torch": "2.9.0"}, "no release that is known for this machine; install 2.8"),
        ({"torch": "2.9.1"}, "is for torch 2.8, and 2.9.1 is here"),
        ({"tensorrt": "10.7.0"}, "is for TensorRT 10.3, and 10.7.0 is here"),
        ({"cuda": "13.0"}, "is for CUDA 12, and 13.0 is here"),
        ({"l4t": 39}, "for JetPack 6 (Jetson Linux 36), not for Jetson Linux 39"),
        ({"l4t": None}, "not for this system"),
        ({"python": (3, 12)}, "is for Python 3.10, not 3.12"),
        ({"gpu": "sm_72x6"}, "no release of torch_tensorrt for aarch64 with a GPU sm_72x6"),
        ({"machine": "ppc64le"}, "no release of torch_tensorrt for ppc64le"),
        # A Thor takes the wheels for servers.
        ({"gpu": "sm_110x20", "l4t": 38}, "is for TensorRT 10.12, and 10.3.0 is here"),
    ],
)
def test_what_is_no_release_for_a_board_is_told(changed: dict[str, Any], words: str) -> None:
    reason = unmatched(replace(ORIN, **changed))
    assert words in reason and is_one_sentence(UnsupportedHere(reason))


MINORS = st.tuples(st.sampled_from([2, 10, 11]), st.integers(0, 16))


@given(
    MINORS,
    MINORS,
    MINORS,
    st.sampled_from(["12.6", "13.0"]),
    st.sampled_from(sorted(GPUS)),
    st.sampled_from([36, 38, None]),
)
def test_only_a_line_of_the_table_is_offered(
    ours: tuple[int, int], torch: tuple[int, int], tensorrt: tuple[int, int], cuda: str, board: Any, l4t: int | None
) -> None:
    said = ["{}.{}.0".format(*one) for one in (ours, torch, tensorrt)]
    facts = Facts(*said, cuda, GPUS[board], "x86_64" if board == "x86_64" else "aarch64", l4t, (3, 10))
    reason = unmatched(facts)
    lines = [
        one
        for one in RELEASES
        if (one.torch_tensorrt, one.torch, one.tensorrt, str(one.cuda), one.board)
        == (ours, torch, tensorrt, cuda.split(".")[0], board_of(facts))
    ]
    assert (reason == "") == bool(lines and (board != "orin" or l4t == 36))
    assert not reason or is_one_sentence(UnsupportedHere(reason))


def call() -> tuple[int, list[str]]:
    """Number of arguments and keywords of the adapter's call; what it adds by version is among them."""
    tree = ast.parse(Path("fleetfit/runtimes/torch_tensorrt_builder.py").read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "make_engine"]
    assigned = [
        node
        for node in ast.walk(functions[0])
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "convert"
    ]
    assert ast.unparse(assigned[0].value) == f"torch_tensorrt.dynamo.{CALL}"
    (found,) = [
        node
        for node in ast.walk(functions[0])
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "convert"
    ]
    return len(found.args), [keyword.arg for keyword in found.keywords if keyword.arg]


@pytest.mark.parametrize("wheel", WHEELS, ids=lambda wheel: wheel["version"])
def test_the_call_is_one_that_the_wheel_has(wheel: dict[str, Any]) -> None:
    assert re.fullmatch(r"torch_tensorrt-[\d.]+-cp311-.*\.whl", wheel["source"]) and len(wheel["sha256"]) == 64
    assert wheel["offered"] and wheel["outputs"]
    count, keywords = call()
    named = [name.lstrip("*") for name in wheel["parameters"]]

    def convert(**_: Any) -> None: ...

    given_names = [name.rstrip("=") for name in named]
    convert.__signature__ = signature(given_names)  # type: ignore[attr-defined]
    added = torch_tensorrt_builder.options_of(convert)
    # What asks for the build's own formats is there up to 2.12, and nothing else from 2.13 on.
    assert list(added) == (["use_explicit_typing"] if version_of(wheel["version"]) < (2, 13) else [])
    assert fits(named, count, [*keywords, *added]), (wheel["version"], keywords)
    assert not fits(named, count, [*keywords, "no_such_option"])
    # By position go only those that are taken so.
    assert all(not name.startswith("*") for name in wheel["parameters"][:count])


def signature(names: list[str]) -> Any:
    return inspect.Signature([inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names])


def test_the_constructed_call_has_parameters_that_wheels_have() -> None:
    tree = ast.parse((HERE / "constructed_torch/torch_tensorrt/__init__.py").read_text())
    for name, newer in (("_older", False), ("_newer", True)):
        (found,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == name]
        own = [one.arg for one in [*found.args.args, *found.args.kwonlyargs]]
        for wheel in WHEELS:
            if (version_of(wheel["version"]) >= (2, 13)) == newer:
                assert set(own) <= {one.strip("*=") for one in wheel["parameters"]}


def forget() -> None:
    for name in [name for name in sys.modules if name.split(".")[0] in ("tensorrt", "torch_tensorrt")]:
        del sys.modules[name]


@pytest.fixture(params=["here"])
def release(request: pytest.FixtureRequest) -> Release:
    """`here`: the release for the torch that is installed; `older`: one that has to be asked for explicit types."""
    machine = "x86_64" if platform.machine() == "x86_64" else "sbsa"
    wanted = version_of(version_here("torch")) if request.param == "here" else (2, 12)
    found = [one for one in RELEASES if one.board == machine and one.torch == wanted]
    assert found, f"no release of torch_tensorrt is known for torch {wanted}: add it to torch_tensorrt_library.py"
    return found[0]


@pytest.fixture
def constructed(release: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Release]:
    """The constructed modules, here and in children."""
    forget()
    number = "{}.{}.0".format(*release.torch_tensorrt)
    facts = tmp_path / "site" / f"torch_tensorrt-{number}.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: torch_tensorrt\nVersion: {number}\n")
    folders = [str(HERE / "constructed"), str(HERE / "constructed_torch"), str(facts.parent)]
    for folder in folders:
        monkeypatch.syspath_prepend(folder)
    invalidate_caches()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*folders, os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("CONSTRUCTED_TENSORRT", "{}.{}.0".format(*release.tensorrt))
    monkeypatch.setenv("CONSTRUCTED_TORCH_TENSORRT", number)
    monkeypatch.setenv("CONSTRUCTED_CUDA", f"{release.cuda}000")
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path / "engines"))
    # Restored at the end: importing the constructed modules replaces them.
    monkeypatch.setattr(cuda, "open_library", cuda.open_library)
    monkeypatch.setattr(torch_tensorrt_library, "DEVICE", "cpu")
    yield release
    forget()


@pytest.fixture
def built_here(constructed: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """Engines are made in this process, which is quicker; the list has what was asked for."""
    asked: list[dict[str, Any]] = []

    def build(build: bytes, shapes: Any, *, limit_s: float, memory_bytes: int | None, progress: Any) -> bytes:
        asked.append(dict(shapes))
        cache = tmp_path / f"timing-{len(asked)}"
        return torch_tensorrt_builder.make_engine(aten.read(build), shapes, 1 << 20, cache, progress)

    monkeypatch.setattr(torch_tensorrt, "build_engine", build)
    return asked


@pytest.mark.usefixtures("built_here")
@pytest.mark.parametrize("name", ["torch_tensorrt"])
class TestContractOnTheConstructedModules(RuntimeContract):
    pass


@pytest.mark.parametrize("release", ["here", "older"], indirect=True)
def test_batches_run_in_pieces_of_the_one_that_was_prepared(
    built_here: list[dict[str, Any]], release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_tensorrt, "unmatched", lambda facts: "")
    for attempt in (0, 1, 0):
        ADAPTER.prepare(aten_affine(), {"x": rows(4)}, threads=1, attempt=attempt)
    assert built_here == [{"input_0": (4, 4)}] * 2
    model = ADAPTER.load(aten_affine(), threads=1)
    for count in (1, 3, 4, 9):
        found = model.run({"x": rows(count)})
        assert list(found) == ["scores", "positive"] and len(found["scores"]) == count
        np.testing.assert_allclose(found["scores"], rows(count) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    assert len(built_here) == 2
    model.bind({"x": rows(2)})()
    assert built_here[2:] == [{"input_0": (2, 4)}]
    model.close()
    before = len(built_here)
    ADAPTER.load(aten_affine(), threads=1).close()
    assert len(built_here) == before, "the engine that was used last is there"


def test_outputs_without_a_row_per_sample_are_not_put_together(built_here: list[dict[str, Any]]) -> None:
    nodes = [Node("torch.ops.aten.view.default", [{"input": 0}, [-1, 1]], {})]
    build = aten.write([Port("x", "float32", (-1, 4))], {"scores": {"node": 0}}, {"scores": False}, [], nodes)
    model = ADAPTER.load(build, threads=1)
    for count in (5, 5, 2):
        np.testing.assert_array_equal(model.run({"x": rows(count)})["scores"], rows(count).reshape(-1, 1))
    model.close()
    assert built_here == [{}, {"input_0": (5, 4)}, {"input_0": (2, 4)}]


@pytest.mark.parametrize("release", ["here", "older"], indirect=True)
def test_an_operator_without_a_converter_is_named(
    built_here: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch_tensorrt, "unmatched", lambda facts: "")
    assert not built_here
    nodes = [Node("torch.ops.aten.erfinv.default", [{"input": 0}], {})]
    with pytest.raises(
        InvalidModel, match=r"makes no engine of the build: .*erfinv.* not currently supported"
    ) as refused:
        ADAPTER.load(aten_build([], nodes, {"scores": 0}, inputs=[4]), threads=1)
    assert is_one_sentence(refused.value)
    assert not logging.getLogger("torch_tensorrt").handlers


def test_an_engine_is_built_in_a_child(constructed: Release) -> None:
    heard: list[float] = []
    ADAPTER.prepare(aten_affine(), {"x": rows(2)}, threads=1, progress=heard.append)
    model = ADAPTER.load(aten_affine(), threads=1)
    np.testing.assert_allclose(model.run({"x": rows(2)})["scores"], rows(2) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    model.close()
    assert heard and heard == sorted(heard) and heard[-1] <= 1


def test_engines_of_two_compilers_are_two(built_here: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    ADAPTER.load(aten_affine(), threads=1).close()
    told = ADAPTER.availability().version
    monkeypatch.setattr(torch_tensorrt, "unmatched", lambda facts: "")
    monkeypatch.setattr(torch_tensorrt_library, "version", lambda package: "2.99.0")
    ADAPTER.load(aten_affine(), threads=1).close()
    assert len(built_here) == 2 and ADAPTER.availability().version != told


def test_what_is_here_is_named_and_what_is_missing(constructed: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    here = ADAPTER.availability()
    assert here.available and here.providers == ("sm_87x8",)
    assert re.fullmatch(r"[\d.]+ with torch \S+ and TensorRT [\d.]+", here.version)
    monkeypatch.setenv("CONSTRUCTED_CUDA", "11080")
    there = ADAPTER.availability()
    assert not there.available and f"is for CUDA {constructed.cuda}, and 11.8 is here" in there.reason
    monkeypatch.setenv("CONSTRUCTED_GPUS", "0")
    assert ADAPTER.availability().reason == "CUDA finds no GPU here: no GPU was found"


def test_without_the_package_it_says_what_to_install() -> None:
    here = ADAPTER.availability()
    if here.available:
        pytest.skip("this machine has torch_tensorrt")
    assert "torch" in here.reason and is_one_sentence(UnsupportedHere(here.reason))


@pytest.mark.parametrize(
    ("text", "release"), [("# R36 (release), REVISION: 4.7, GCID: 1\n", 36), ("# R38 (release)", 38), ("nothing", None)]
)
def test_a_jetsons_linux_is_read(
    text: str, release: int | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "release").write_text(text)
    monkeypatch.setattr(torch_tensorrt_library, "_RELEASE_FILE", tmp_path / "release")
    assert torch_tensorrt_library._l4t() == release
