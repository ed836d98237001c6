"""The TensorRT adapter's own work, on a constructed TensorRT (see constructed/): nothing here was run on a GPU."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from fleetfit.core.children import ENGINES_VARIABLE
from fleetfit.core.errors import InvalidModel, TimedOut, UnsupportedHere
from fleetfit.runtimes import cuda, tensorrt
from fleetfit.runtimes.base import ignore_progress
from fleetfit.runtimes.contract import is_one_sentence, rows
from fleetfit.runtimes.engines import evict
from fleetfit.runtimes.operators import Profile
from fleetfit.runtimes.pieces import pieces
from fleetfit.runtimes.samples import WEIGHTS
from fleetfit.runtimes.tensorrt import TensorRt
from fleetfit.runtimes.tensorrt_builder import Phases, build_engine, fixed_shape, make_engine
from fleetfit.runtimes.tensorrt_library import allowed_formats, creation_flags, import_tensorrt, version_of

from .builds import ANY, affine, flattened, scalar
from .contract import RuntimeContract

CONSTRUCTED = Path(__file__).parent / "constructed"
ADAPTER = TensorRt()


@pytest.fixture(params=["10.3.0"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def constructed(version: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The constructed module, here and in children."""
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(CONSTRUCTED))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CONSTRUCTED), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("CONSTRUCTED_TENSORRT", version)
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path / "engines"))
    # Restored at the end: importing the constructed module replaces it.
    monkeypatch.setattr(cuda, "open_library", cuda.open_library)
    yield import_tensorrt()
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        del sys.modules[name]


@pytest.fixture
def built_here(constructed: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Engines are made in this process, which is quicker; the list has what was asked for."""
    asked: list[dict[str, Any]] = []

    def build(build: bytes, shapes: Any, *, limit_s: float, memory_bytes: int | None, progress: Any) -> bytes:
        asked.append(dict(shapes))
        return make_engine(constructed, build, shapes, 1 << 20, progress)

    monkeypatch.setattr(tensorrt, "build_engine", build)
    return asked


@pytest.mark.usefixtures("built_here")
@pytest.mark.parametrize("version", ["8.6.1", "10.3.0", "11.4.0"], indirect=True)
@pytest.mark.parametrize("name", ["tensorrt"])
class TestContractOnTheConstructedModule(RuntimeContract):
    pass


def test_an_engine_is_built_once_for_each_shape(built_here: list[dict[str, Any]]) -> None:
    for _ in range(2):
        ADAPTER.prepare(affine(), {"x": rows(3)}, threads=1)
        model = ADAPTER.load(affine(), threads=1)
        model.bind({"x": rows(3)})()
        model.close()
    assert built_here == [{"x": (3, 4)}]
    ADAPTER.prepare(affine(), {"x": rows(2)}, threads=1)
    ADAPTER.prepare(affine(WEIGHTS + 1), {"x": rows(3)}, threads=1)
    assert built_here[1:] == [{"x": (2, 4)}, {"x": (3, 4)}]


def test_another_version_or_gpu_builds_anew(
    built_here: list[dict[str, Any]], constructed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ADAPTER.load(affine(), threads=1).close()
    monkeypatch.setattr(constructed, "__version__", "10.3.1")
    ADAPTER.load(affine(), threads=1).close()
    monkeypatch.setattr(cuda.Cuda, "gpu", lambda self: "sm_87x16")
    ADAPTER.load(affine(), threads=1).close()
    ADAPTER.load(affine(), threads=1).close()
    assert len(built_here) == 3


def test_batches_are_run_in_pieces_of_the_engines_own(built_here: list[dict[str, Any]]) -> None:
    ADAPTER.prepare(affine(), {"x": rows(4)}, threads=1)
    model = ADAPTER.load(affine(), threads=1)
    for count in (1, 3, 4, 9):
        found = model.run({"x": rows(count)})["scores"]
        np.testing.assert_allclose(found, rows(count) @ WEIGHTS, rtol=1e-5, atol=1e-5)
        assert len(found) == count
    model.close()
    assert built_here == [{"x": (4, 4)}]


@pytest.mark.parametrize("build", [scalar, flattened])
def test_outputs_without_a_row_per_sample_are_not_put_together_from_pieces(
    built_here: list[dict[str, Any]], build: Any
) -> None:
    model = ADAPTER.load(build(), threads=1)
    found = model.run({"x": rows(5)})["scores"]
    expected = rows(5).max() if build is scalar else rows(5).reshape(-1, 1)
    np.testing.assert_array_equal(found, expected)
    model.close()
    assert built_here == [{}, {"x": (5, 4)}]


def test_everything_is_given_back(built_here: list[dict[str, Any]], constructed: Any) -> None:
    model = ADAPTER.load(affine(), threads=1)
    model.run({"x": rows(3)})
    calls = [model.bind({"x": rows(count)}) for count in (1, 2)]
    for call in [*calls, *calls]:
        call()
    assert constructed.cudart.held() > 0
    model.close()
    assert constructed.cudart.held() == 0


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"], indirect=True)
def test_whole_numbers_are_narrowed_where_the_version_has_no_wide_ones(built_here: list[dict[str, Any]]) -> None:
    assert built_here == []
    port = [helper.make_tensor_value_info(name, TensorProto.INT64, [ANY, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "whole", port[:1], port[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    model = ADAPTER.load(proto.SerializeToString(), threads=1)
    values = np.arange(8).reshape(2, 4)
    np.testing.assert_array_equal(model.run({"x": values})["y"], values * 2)
    model.close()


def test_a_size_that_depends_on_values_is_refused(built_here: list[dict[str, Any]]) -> None:
    shapes = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [ANY, 4])]
    output = [helper.make_tensor_value_info("where", TensorProto.INT64, [2, "M"])]
    graph = helper.make_graph([helper.make_node("NonZero", ["x"], ["where"])], "some", shapes, output)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    proto.ir_version = 8
    with pytest.raises(InvalidModel, match="'where' depends on the values of the inputs") as refused:
        ADAPTER.load(proto.SerializeToString(), threads=1)
    assert is_one_sentence(refused.value)


@pytest.mark.parametrize(
    ("version", "network_flags", "flags"),
    [("8.6.1", 1, ["FP16"]), ("10.3.0", 2, []), ("11.4.0", 1, [])],
    indirect=["version"],
)
def test_float32_is_not_tf32_and_halves_are_allowed_where_the_build_has_them(
    constructed: Any, network_flags: int, flags: list[str]
) -> None:
    port = [helper.make_tensor_value_info(name, TensorProto.FLOAT16, [ANY, 4]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "halves", port[:1], port[1:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    plan = make_engine(constructed, proto.SerializeToString(), {}, 1 << 20, ignore_progress)
    about = json.loads(plan.partition(b"\n")[0])
    assert (about["network_flags"], about["flags"]) == (network_flags, flags)
    assert about["shapes"] == {"x": [[1, 4]] * 3}


@pytest.mark.parametrize("version", ["8.6.1", "10.3.0"], indirect=True)
def test_an_engine_is_built_in_a_child_that_tells_how_far_it_is(
    constructed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONSTRUCTED_STEP_S", "0.3")
    heard: list[float] = []
    plan = build_engine(affine(), {"x": (2, 4)}, limit_s=100, memory_bytes=None, progress=heard.append)
    assert json.loads(plan.partition(b"\n")[0])["shapes"] == {"x": [[2, 4]] * 3}
    assert heard and heard == sorted(heard) and all(0 <= fraction <= 1 for fraction in heard)
    if constructed.__version__ != "8.6.1":
        assert heard[-1] >= 0.1


def test_a_child_that_takes_too_long_is_stopped(constructed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRUCTED_STEP_S", "60")
    began = time.monotonic()
    with pytest.raises(TimedOut, match="did not finish the build's engine") as late:
        build_engine(affine(), {}, limit_s=0.5, memory_bytes=None, progress=ignore_progress)
    assert time.monotonic() - began < 60 and is_one_sentence(late.value)


def test_a_child_that_refuses_says_why(constructed: Any) -> None:
    with pytest.raises(InvalidModel, match=r"TensorRT 10\.3\.0 cannot read the build: ") as refused:
        build_engine(b"noise", {}, limit_s=100, memory_bytes=None, progress=ignore_progress)
    assert is_one_sentence(refused.value)


def test_a_child_without_memory_says_so(constructed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRUCTED_MEMORY", "none")
    with pytest.raises(MemoryError, match="could not allocate"):
        build_engine(affine(), {}, limit_s=100, memory_bytes=4 << 30, progress=ignore_progress)


def test_a_child_that_crashes_is_the_builds_refusal(constructed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRUCTED_TENSORRT", "no number")
    with pytest.raises(InvalidModel, match="TensorRT crashed while it built the engine") as refused:
        build_engine(affine(), {}, limit_s=100, memory_bytes=None, progress=ignore_progress)
    assert is_one_sentence(refused.value)


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"CONSTRUCTED_GPUS": "0"}, "CUDA finds no GPU here: no GPU was found"),
        ({"CONSTRUCTED_TENSORRT": "8.4.1"}, "TensorRT 8.4.1 is too old; it takes 8.5 or newer, which JetPack 5.1 has"),
    ],
)
def test_what_is_missing_is_named(
    constructed: Any, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], reason: str
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constructed, "__version__", os.environ["CONSTRUCTED_TENSORRT"])
    here = ADAPTER.availability()
    assert (here.available, here.reason, here.version) == (False, reason, "")


def test_what_is_here_is_named(constructed: Any) -> None:
    here = ADAPTER.availability()
    assert (here.available, here.version, here.providers) == (True, "10.3.0", ("sm_87x8",))


def test_a_systems_module_is_found_beside_this_environment_and_nothing_else_of_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for name, source in {
        "tensorrt/__init__.py": "from . import part\nfrom .part import *\n",
        "tensorrt/part.py": "__version__ = '10.3.0'\n__all__ = ['__version__']\n",
        "only_of_the_system.py": "",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    module = import_tensorrt([tmp_path / "not there", tmp_path])
    assert module.__version__ == "10.3.0" and module is sys.modules["tensorrt"]
    with pytest.raises(ImportError):
        __import__("only_of_the_system")
    for name in [name for name in sys.modules if name.startswith("tensorrt.")]:
        del sys.modules[name]


def test_a_systems_module_for_another_python_is_no_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    (tmp_path / "tensorrt").mkdir()
    (tmp_path / "tensorrt/__init__.py").write_text("raise ImportError('compiled for Python 3.8')\n")
    monkeypatch.setattr("fleetfit.runtimes.tensorrt_library.system_folders", lambda: [tmp_path])
    with pytest.raises(ImportError, match=r"compiled for Python 3\.8"):
        import_tensorrt()
    assert "tensorrt" not in sys.modules
    assert "(compiled for Python 3.8); on a Jetson: sudo apt install" in ADAPTER.availability().reason


def test_a_machine_without_cuda_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_candidates", lambda: iter(["/nowhere/libcudart.so", "libc.so.6"]))
    with pytest.raises(UnsupportedHere, match=r"libcudart\.so\) is not here") as missing:
        cuda.find_cuda()
    assert is_one_sentence(missing.value)


def test_engines_used_longest_ago_go_first(tmp_path: Path) -> None:
    for at, name in enumerate(["old", "new", "kept"]):
        (tmp_path / f"{name}.engine").write_bytes(bytes(100))
        os.utime(tmp_path / f"{name}.engine", (at, at))
    evict(tmp_path, 250, keep=tmp_path / "kept.engine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.engine", "new.engine"]
    evict(tmp_path, 10, keep=tmp_path / "kept.engine")
    assert [path.name for path in tmp_path.iterdir()] == ["kept.engine"]
    # What the measurement that goes on takes turns with is not made anew each time.
    (tmp_path / "other.engine").write_bytes(bytes(100))
    evict(tmp_path, 10, keep=tmp_path / "kept.engine")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept.engine", "other.engine"]


@given(st.integers(1, 20), st.integers(1, 8))
def test_pieces_put_together_are_the_samples(count: int, size: int) -> None:
    found = list(pieces({"x": rows(count), "y": np.arange(count)}, size))
    assert all(len(piece["x"]) == len(piece["y"]) == size for piece in found)
    np.testing.assert_array_equal(np.concatenate([piece["x"] for piece in found])[:count], rows(count))
    assert len(found) == -(-count // size)


NAMES = st.sampled_from(["a", "b", "c"])
EVENTS = st.lists(
    st.one_of(
        st.tuples(st.just("start"), NAMES, st.one_of(st.none(), NAMES), st.integers(0, 5)),
        st.tuples(st.just("step"), NAMES, st.integers(0, 9)),
        st.tuples(st.just("finish"), NAMES),
    )
)


@given(EVENTS)
def test_a_fraction_never_falls_whatever_phases_are_told(events: list[Any]) -> None:
    phases, before = Phases(), 0.0
    for kind, *arguments in events:
        now = getattr(phases, kind)(*arguments)
        assert before <= now <= 1
        before = now


def test_a_nested_phase_moves_its_parent_on() -> None:
    phases = Phases()
    assert phases.start("build", None, 2) == 0
    assert phases.start("time", "build", 4) == 0
    assert phases.step("time", 1) == 0.25
    assert phases.finish("time") == 0.25
    assert phases.step("build", 0) == 0.5
    assert phases.step("build", 1) == 1


@given(st.lists(st.integers(1, 9), min_size=1, max_size=4), st.integers(1, 9))
def test_a_shape_is_the_one_asked_for_or_one_sample(sizes: list[int], batch: int) -> None:
    declared = [-1, *sizes]
    assert fixed_shape("x", declared, {}) == (1, *sizes)
    assert fixed_shape("x", declared, {"x": [batch, *sizes]}) == (batch, *sizes)
    assert fixed_shape("x", [batch, *sizes], {}) == (batch, *sizes)
    for wrong in ([batch, *sizes, 1], [batch, *sizes[:-1], sizes[-1] + 1]):
        with pytest.raises(InvalidModel):
            fixed_shape("x", declared, {"x": wrong})


def test_sizes_beside_the_batch_must_be_known() -> None:
    with pytest.raises(InvalidModel, match="needs sizes beside the batch that are known") as refused:
        fixed_shape("x", [-1, -1, 8], {})
    assert is_one_sentence(refused.value)
    assert fixed_shape("x", [-1, -1, 8], {"x": [2, 5, 8]}) == (2, 5, 8)


@pytest.mark.parametrize(
    ("text", "version"), [("8.6.1", (8, 6)), ("10.13.3.9.post1", (10, 13)), ("11.4.0.106", (11, 4)), ("x", (0, 0))]
)
def test_versions(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("members", "flags", "allowed"),
    [
        (["EXPLICIT_BATCH", "EXPLICIT_PRECISION"], ("EXPLICIT_BATCH",), ("INT8", "FP16")),
        (["EXPLICIT_BATCH", "STRONGLY_TYPED"], ("STRONGLY_TYPED",), ()),
        ([], (), ("INT8", "FP16")),
    ],
)
def test_formats_are_those_of_the_build(members: list[str], flags: tuple[str, ...], allowed: tuple[str, ...]) -> None:
    assert creation_flags(members) == flags
    assert allowed_formats(flags, ["QUANTIZE", "OTHER"], ["HALF", "FLOAT"]) == allowed
    assert allowed_formats(flags, ["OTHER"], ["FLOAT", "INT32"]) == ()


def test_free_memory_of_the_gpu_is_less_while_a_build_is_loaded(built_here: list[dict[str, Any]]) -> None:
    before = ADAPTER.gpu_free_bytes()
    model = ADAPTER.load(affine(), threads=1)
    call = model.bind({"x": rows(1)})
    call()
    meanwhile = ADAPTER.gpu_free_bytes()
    assert before is not None and meanwhile is not None and meanwhile < before
    model.close()
    assert ADAPTER.gpu_free_bytes() == before


def test_without_cuda_nothing_tells_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(path: str) -> Any:
        raise OSError(path)

    monkeypatch.setattr(cuda, "open_library", none)
    assert TensorRt.uses_gpu and ADAPTER.gpu_free_bytes() is None


@pytest.mark.usefixtures("built_here")
def test_layers_are_timed_as_tensorrt_reports_them() -> None:
    found = ADAPTER.profile(affine(), {"x": rows(3)}, threads=1)
    assert isinstance(found, Profile)
    assert {one.placed for one in found.operators} == {"GPU"}
    assert {one.operator for one in found.operators} == {one.number_format for one in found.operators} == {""}
    assert all(one.runs == found.calls for one in found.operators), "each layer is reported once a call"
    assert len(found.operators) == 2 and "layers" in found.notes[0]
