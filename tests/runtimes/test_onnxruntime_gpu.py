"""ONNX Runtime's CUDA and TensorRT adapters: their own work, on constructed providers; nothing here was run on a GPU."""

from __future__ import annotations

import json
import os
import runpy
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fleetfit.core.children import ENGINES_VARIABLE
from fleetfit.core.errors import InvalidModel, UnsupportedHere
from fleetfit.runtimes import onnxruntime_gpu
from fleetfit.runtimes.base import ignore_progress
from fleetfit.runtimes.contract import is_one_sentence, rows
from fleetfit.runtimes.onnxruntime_gpu import OnnxRuntimeCuda, OnnxRuntimeTensorRt, precisions
from fleetfit.runtimes.onnxruntime_profile import Placement, placement_of
from fleetfit.runtimes.samples import WEIGHTS

from .builds import affine, flattened
from .contract import RuntimeContract

CONSTRUCTED = Path(__file__).parent / "constructed_gpu"
NAMES = ["onnxruntime-cuda", "onnxruntime-tensorrt"]
Opened = list[list[tuple[str, dict[str, str]]]]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Opened:
    """The constructed providers, here and in children; what sessions were opened with here."""
    providers = runpy.run_path(str(CONSTRUCTED / "providers.py"))
    providers["pretend"](onnxruntime, monkeypatch.setattr)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(CONSTRUCTED), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv(ENGINES_VARIABLE, str(tmp_path / "engines"))
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "")
    found: Opened = providers["opened"]
    return found


@pytest.fixture
def made_here(opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[dict[str, Any]]:
    """What is made apart is made in this process, which is quicker; the list has the shapes that were asked for."""
    asked: list[dict[str, Any]] = []

    @contextmanager
    def apart(module: str, build: bytes, request: dict[str, Any], **_: Any) -> Iterator[Path]:
        asked.append(request["shapes"])
        (tmp_path / "build").write_bytes(build)
        onnxruntime_gpu.work(tmp_path, json.loads(json.dumps(request)), ignore_progress)
        yield tmp_path

    monkeypatch.setattr(onnxruntime_gpu, "build_apart", apart)
    return asked


@pytest.mark.usefixtures("made_here")
@pytest.mark.parametrize("name", NAMES)
class TestContractOnConstructedProviders(RuntimeContract):
    pass


@pytest.mark.usefixtures("opened")
@pytest.mark.parametrize("adapter", [OnnxRuntimeCuda(), OnnxRuntimeTensorRt()])
def test_a_build_is_made_in_a_child(adapter: Any, tmp_path: Path) -> None:
    heard: list[float] = []
    adapter.prepare(affine(), {"x": rows(2)}, threads=1, progress=heard.append)
    model = adapter.load(affine(), threads=1)
    np.testing.assert_allclose(model.run({"x": rows(2)})["scores"], rows(2) @ WEIGHTS, rtol=1e-5, atol=1e-5)
    assert model.notes() == ()
    model.close()
    engines = list((tmp_path / "engines").glob("*.engine/*.engine"))
    assert len(engines) == (1 if adapter.compiles else 0)
    with pytest.raises(InvalidModel, match="ONNX Runtime .* cannot load the build") as refused:
        adapter.prepare(b"noise", {}, threads=1)
    assert is_one_sentence(refused.value)


def test_a_batch_is_compiled_once_and_again_for_each_attempt(made_here: list[dict[str, Any]], opened: Opened) -> None:
    adapter = OnnxRuntimeTensorRt()
    folders = []
    for attempt in (0, 1, 0):
        adapter.prepare(affine(), {"x": rows(3)}, threads=1, attempt=attempt)
        adapter.load(affine(), threads=1).close()
        folders.append(opened[-1][0][1]["trt_engine_cache_path"])
    assert made_here == [{"x": [3, 4]}] * 2
    assert folders[0] == folders[2] != folders[1]


def test_batches_are_run_in_pieces_of_the_compiled_one(made_here: list[dict[str, Any]]) -> None:
    adapter = OnnxRuntimeTensorRt()
    adapter.prepare(affine(), {"x": rows(4)}, threads=1)
    model = adapter.load(affine(), threads=1)
    for count in (1, 3, 4, 9):
        found = model.run({"x": rows(count)})["scores"]
        np.testing.assert_allclose(found, rows(count) @ WEIGHTS, rtol=1e-5, atol=1e-5)
        assert len(found) == count
    model.close()
    assert made_here == [{"x": [4, 4]}]
    model = adapter.load(flattened(), threads=1)
    # Four rows for each sample: what belongs to a batch cannot be put together.
    np.testing.assert_array_equal(model.run({"x": rows(5)})["scores"], rows(5).reshape(-1, 1))
    model.bind({"x": rows(2)})()
    model.close()
    assert made_here[1:] == [{}, {"x": [5, 4]}, {"x": [2, 4]}]


@pytest.mark.usefixtures("made_here")
def test_floats_stay_floats_and_inputs_are_copied_in_each_call(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    feed = rows(2)
    model = OnnxRuntimeCuda().load(affine(), threads=1)
    assert opened[-1][0][1]["use_tf32"] == "0" and os.environ["NVIDIA_TF32_OVERRIDE"] == "0"
    bound: list[str] = []
    real = onnxruntime.IOBinding.bind_cpu_input
    monkeypatch.setattr(
        onnxruntime.IOBinding, "bind_cpu_input", lambda *given: (bound.append(given[1]), real(*given))[1]
    )
    call = model.bind({"x": feed})
    for _ in range(3):
        call()
    assert bound == ["x"] * 4
    model.close()


@pytest.mark.usefixtures("made_here")
@pytest.mark.parametrize("adapter", [OnnxRuntimeCuda(), OnnxRuntimeTensorRt()])
def test_what_runs_elsewhere_is_told_and_nothing_on_the_gpu_is_refused(
    adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    title = "CUDA" if adapter.name == NAMES[0] else "TensorRT"
    monkeypatch.setenv("CONSTRUCTED_ON_CPU", "Relu")
    model = adapter.load(affine(), threads=1)
    assert model.notes() == (
        f"of 2 operators that ONNX Runtime is left with 1 do not run by {title}: 1 by the processor (Relu)",
    )
    model.close()
    monkeypatch.setenv("CONSTRUCTED_ON_CPU", "Relu,MatMul")
    with pytest.raises(InvalidModel, match=f"no operator of the build by {title}: 2 by the processor") as refused:
        adapter.load(affine(WEIGHTS + 1), threads=1)
    assert is_one_sentence(refused.value)


@pytest.mark.usefixtures("opened")
def test_a_provider_that_does_not_start_is_no_silent_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONSTRUCTED_ABSENT", "CUDAExecutionProvider")
    # In a child: a session that was begun there holds its profile open.
    with pytest.raises(UnsupportedHere, match="has CUDAExecutionProvider and cannot start it") as refused:
        OnnxRuntimeCuda().load(affine(), threads=1)
    assert is_one_sentence(refused.value)


@pytest.mark.usefixtures("opened")
def test_what_is_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    here = OnnxRuntimeCuda().availability()
    assert (here.available, here.version) == (True, onnxruntime.__version__)
    assert here.providers == ("CUDAExecutionProvider", "CPUExecutionProvider")
    there = OnnxRuntimeTensorRt().availability()
    assert there.version == f"{onnxruntime.__version__} with TensorRT of an unknown version"
    monkeypatch.setenv("CONSTRUCTED_GPUS", "0")
    assert OnnxRuntimeCuda().availability().reason == "CUDA finds no GPU here: no GPU was found"


@pytest.mark.parametrize(
    ("adapter", "provider"),
    [(OnnxRuntimeCuda(), "CUDAExecutionProvider"), (OnnxRuntimeTensorRt(), "TensorrtExecutionProvider")],
)
def test_the_package_without_the_provider_says_which_has_it(adapter: Any, provider: str) -> None:
    if provider in onnxruntime.get_available_providers():
        pytest.skip(f"this machine's onnxruntime has {provider}")
    here = adapter.availability()
    assert (here.available, here.version) == (False, "")
    assert here.reason == f"this onnxruntime has no {provider}; install the package 'onnxruntime-gpu' in its place"


@pytest.fixture(scope="module")
def half() -> bytes:
    """`affine` in half floats, as the pass `quantize` makes it."""
    # Not above: it imports torch, which a board need not have to collect these tests.
    from fleetfit.compress.quantization.half import to_half

    return to_half(onnx.load_model_from_string(affine()), [])


@pytest.mark.parametrize(
    ("tensorrt", "switch"), [("8.6.1", "True"), ("10.3.0", "False"), ("11.1.0", "False"), ("", "False")]
)
def test_half_floats_need_a_switch_where_networks_have_no_formats_of_their_own(
    half: bytes, tensorrt: str, switch: str
) -> None:
    assert precisions(half, tensorrt) == {"trt_int8_enable": "False", "trt_fp16_enable": switch}
    # Floats stay floats, whatever the version.
    assert set(precisions(affine(), tensorrt).values()) == {"False"}
    assert precisions(b"... QuantizeLinear ...", tensorrt) == {"trt_int8_enable": "True", "trt_fp16_enable": "False"}


@pytest.mark.usefixtures("made_here")
def test_a_build_of_half_floats_is_opened_as_it_is(half: bytes, opened: Opened) -> None:
    model = OnnxRuntimeTensorRt().load(half, threads=1)
    assert opened[-1][0][1]["trt_fp16_enable"] == "False"
    found = model.run({"x": rows(3)})["scores"]
    # The processor beneath may widen halves, and then nothing is lost.
    assert found.dtype == np.float32 and np.abs(found - rows(3) @ WEIGHTS).max() < 0.05
    model.close()


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["Conv", "Relu", "MemcpyToHost"]),
        st.sampled_from(["CUDAExecutionProvider", "CPUExecutionProvider"]),
        st.booleans(),
    )
)


@given(EVENTS)
def test_every_operator_is_counted_once_where_it_ran(events: list[tuple[str, str, bool]]) -> None:
    text = [
        {
            "cat": "Node",
            "name": f"{at}_{'kernel_time' if computes else 'fence_before'}",
            "dur": 1,
            "args": {"op_name": operator, "provider": provider},
        }
        for at, (operator, provider, computes) in enumerate(events)
    ]
    text.append({"cat": "Session", "name": "model_run", "dur": 1, "args": {}})
    found = placement_of(json.dumps(text), first="CUDAExecutionProvider")
    counted = [one for one in events if one[2] and one[0] != "MemcpyToHost"]
    for provider in ("CUDAExecutionProvider", "CPUExecutionProvider"):
        assert found.count(provider) == sum(one[1] == provider for one in counted)
    elsewhere = found.count("CPUExecutionProvider")
    assert bool(found.notes({})) == bool(elsewhere)
    assert Placement.from_json(found.to_json()) == found


@pytest.mark.parametrize("text", ["", "{}", "[1]", '[{"cat": "Node", "name": "x_kernel_time"}]', "[{}"])
def test_what_is_no_profile_is_refused_in_a_sentence(text: str) -> None:
    def read() -> Placement:
        return placement_of(text, first="CUDAExecutionProvider")

    if text == "{}":
        assert read().count("CUDAExecutionProvider") == 0
        return
    with pytest.raises(InvalidModel) as refused:
        read()
    assert is_one_sentence(refused.value)
