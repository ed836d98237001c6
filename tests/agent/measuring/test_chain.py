"""The chain of a model's parts: every link is timed in turn, values are handed on, and what fails is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from fleetfit.agent.measuring import chain
from fleetfit.proto.chains import chain_ratio
from fleetfit.proto.v1 import common_pb2, measurement_pb2
from fleetfit.runtimes.samples import WEIGHTS, ncnn_affine

from ...runtimes.builds import affine
from .tasks import measure, prepare, refused_here, trial_here

Link = measurement_pb2.ChainLink
WIDE = np.ones((4, 3), np.float32)
CHAINED = {"chain_processes": 2}


def onnx_file(kind: str, takes: tuple[str, int, int], gives: tuple[str, int, int], **attributes: Any) -> bytes:
    node = helper.make_node(kind, [takes[0]], [gives[0]], **attributes)
    infos = [helper.make_tensor_value_info(name, dtype, ["N", size]) for name, dtype, size in (takes, gives)]
    graph = helper.make_graph([node], "part", infos[:1], infos[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(made.SerializeToString())


PRE = onnx_file("Cast", ("pixels", TensorProto.UINT8, 4), ("x", TensorProto.FLOAT, 4), to=TensorProto.FLOAT)
POST = onnx_file("ArgMax", ("scores", TensorProto.FLOAT, 3), ("label", TensorProto.INT64, 1), axis=1)


def add_parts(
    folder: Path,
    task: measurement_pb2.MeasureTask,
    *,
    pre: bytes | None = PRE,
    post: bytes | None = POST,
    batch: int = -1,
) -> measurement_pb2.MeasureTask:
    """Give a task parts, and lay it out again."""
    spec = common_pb2.TensorSpec
    if pre is not None:
        (folder / "in" / "pre.onnx").write_bytes(pre)
        task.pre.artifact_name, task.pre.runtime, task.pre.format = "pre.onnx", "onnxruntime", "onnx"
        task.pre.inputs.append(spec(name="pixels", dtype="uint8", shape=[batch, 4]))
        task.pre.outputs.append(spec(name="x", dtype="float32", shape=[batch, 4]))
    if post is not None:
        (folder / "in" / "post.onnx").write_bytes(post)
        task.post.artifact_name, task.post.runtime, task.post.format = "post.onnx", "onnxruntime", "onnx"
        task.post.inputs.append(spec(name="scores", dtype="float32", shape=[-1, 3]))
        task.post.outputs.append(spec(name="label", dtype="int64", shape=[-1, 1]))
    (folder / "task.pb").write_bytes(task.SerializeToString())
    return task


def chain_here(folder: Path, kind: str = "chain", number: int = 0) -> measurement_pb2.ChainRun:
    run = measurement_pb2.ChainRun()
    trial_here(folder, run, kind, number)
    return run


def test_every_link_has_a_block_in_every_round(tmp_path: Path) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), baseline=affine(WIDE), method=CHAINED))
    run = chain_here(tmp_path)
    links = {Link.CHAIN_LINK_WHOLE, Link.CHAIN_LINK_BASELINE, Link.CHAIN_LINK_PRE, Link.CHAIN_LINK_CORE}
    links.add(Link.CHAIN_LINK_POST)
    assert len(run.blocks) % len(links) <= 1
    rounds = [run.blocks[at : at + len(links)] for at in range(0, len(run.blocks) - 1, len(links))]
    assert len(rounds) >= 3
    for blocks in rounds:
        assert {block.link for block in blocks} == links
        assert all(block.latency_ns and min(block.latency_ns) > 0 for block in blocks)
    # The order is drawn, so it is not always the same.
    assert len({tuple(block.link for block in blocks) for blocks in rounds}) > 1
    spent = sum(sum(block.latency_ns) for block in run.blocks)
    assert spent < run.window.end_monotonic_ns - run.window.begin_monotonic_ns
    assert run.parts_runtime_version


def test_the_whole_chain_has_samples_enough_for_a_p95(tmp_path: Path) -> None:
    """A round that takes one sample of each link stands for a slow chain."""
    few = {"chain_processes": 1, "solo_samples": 1, "block_ns": 1}
    add_parts(tmp_path, prepare(tmp_path, affine(), baseline=affine(WIDE), method=few))
    run = chain_here(tmp_path)
    assert sum(len(block.latency_ns) for block in run.blocks if block.link == Link.CHAIN_LINK_WHOLE) >= 130
    assert len(run.blocks) % 5 == 1 and run.blocks[-1].link == Link.CHAIN_LINK_WHOLE
    ratio = chain_ratio(measurement_pb2.MeasurementResult(chains=[run]))
    assert ratio is not None and ratio.value > 0


def test_a_chain_that_is_late_keeps_the_fewest_rounds(tmp_path: Path) -> None:
    late = {"chain_processes": 1, "blocks_per_process": 500, "solo_limit_ns": 0}
    add_parts(tmp_path, prepare(tmp_path, affine(), method=late))
    run = chain_here(tmp_path, "chain-alone")
    assert sum(block.link == Link.CHAIN_LINK_PRE for block in run.blocks) == 3


@pytest.mark.parametrize("number", [0, 1])
def test_the_build_that_is_loaded_first_alternates(tmp_path: Path, number: int) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), baseline=affine(WIDE), method=CHAINED))
    assert chain_here(tmp_path, number=number).candidate_loaded_first == (number == 0)


@pytest.mark.parametrize("part", ["pre", "post"])
def test_either_part_may_be_missing_and_so_may_the_baseline(tmp_path: Path, part: str) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), method=CHAINED), **{part: None})  # type: ignore[arg-type]
    links = {block.link for block in chain_here(tmp_path, "chain-alone").blocks}
    other = Link.CHAIN_LINK_POST if part == "pre" else Link.CHAIN_LINK_PRE
    assert links == {Link.CHAIN_LINK_WHOLE, Link.CHAIN_LINK_CORE, other}


def test_values_are_handed_from_part_to_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = add_parts(tmp_path, prepare(tmp_path, affine(), baseline=affine(WIDE), method=CHAINED, batch=-1))
    seen: list[tuple[str, dict[str, Any]]] = []
    run = chain._Part.run

    def spied(self: Any, values: Any) -> Any:
        found = run(self, values)
        seen.append((self._name, found))
        return found

    monkeypatch.setattr(chain._Part, "run", spied)
    made = chain.Chain(task, tmp_path, candidate_first=True, both=True)
    for link, weights in ((Link.CHAIN_LINK_WHOLE, WEIGHTS), (Link.CHAIN_LINK_BASELINE, WIDE)):
        seen.clear()
        made.links[link]()
        names, results = zip(*seen, strict=True)
        assert names == ("the pre part", "the build", "the post part")
        x = results[0]["x"]
        assert x.dtype == np.float32 and set(np.unique(x)) <= {0.0, 1.0}
        np.testing.assert_allclose(results[1]["scores"], x @ weights)
        np.testing.assert_array_equal(results[2]["label"], np.argmax(x @ weights, axis=1, keepdims=True))
    made.close()


def test_a_part_that_does_not_take_the_batch_says_so(tmp_path: Path) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), method=CHAINED), batch=8)
    assert refused_here(tmp_path, "chain-alone") == (
        "the pre part takes batches of 8 only; measure end to end with --batch 8"
    )


def test_a_part_that_cannot_be_loaded_says_which(tmp_path: Path) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), method=CHAINED), post=b"no model")
    assert refused_here(tmp_path, "chain-alone").startswith("the post part cannot be loaded: ONNX Runtime")


def test_a_part_that_nothing_feeds_says_so(tmp_path: Path) -> None:
    task = prepare(tmp_path, affine(), method=CHAINED)
    add_parts(tmp_path, task)
    task.post.inputs[0].name = "logits"
    (tmp_path / "task.pb").write_bytes(task.SerializeToString())
    assert "nothing before the post part gives 'logits'" in refused_here(tmp_path, "chain-alone")


def test_a_whole_measurement_brings_the_chain(tmp_path: Path) -> None:
    task = prepare(tmp_path, affine(), baseline=affine(WIDE), method=CHAINED)
    task.baseline.build_id = "another"
    add_parts(tmp_path, task)
    result = measure(tmp_path)
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED, result.message
    assert [run.candidate_loaded_first for run in result.chains] == [True, False]
    assert not result.no_chain_because
    assert len(result.pairs) == 2 and len(result.readings) == 4
    task.ClearField("pre")
    task.ClearField("post")
    (tmp_path / "task.pb").write_bytes(task.SerializeToString())
    plain = measure(tmp_path)
    assert not plain.chains and not plain.no_chain_because and len(plain.readings) == 3


def test_the_original_is_not_timed_beside_itself(tmp_path: Path) -> None:
    task = prepare(tmp_path, affine(), baseline=affine(), method={"chain_processes": 1, "pair_processes": 1})
    task.baseline.build_id = task.candidate.build_id
    add_parts(tmp_path, task)
    result = measure(tmp_path)
    assert Link.CHAIN_LINK_BASELINE not in {block.link for run in result.chains for block in run.blocks}


def test_a_device_without_onnx_runtime_measures_the_build_and_says_why_not_more(tmp_path: Path) -> None:
    pytest.importorskip("ncnn")
    site = tmp_path / "site"
    site.mkdir()
    (site / "onnxruntime.py").write_text("raise ImportError('No module named onnxruntime')\n")
    folder = tmp_path / "task"
    task = prepare(folder, ncnn_affine(), runtime="ncnn", method=CHAINED)
    add_parts(folder, task)
    result = measure(folder, PYTHONPATH=str(site))
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED, result.message
    assert result.solo.latency_ns and not result.chains
    assert result.no_chain_because.startswith("onnxruntime cannot be used on this device: pip install")


def test_a_part_that_breaks_leaves_the_build_measured(tmp_path: Path) -> None:
    add_parts(tmp_path, prepare(tmp_path, affine(), method=CHAINED), pre=b"no model")
    result = measure(tmp_path)
    assert result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED
    assert result.solo.latency_ns and "the pre part cannot be loaded" in result.no_chain_because
