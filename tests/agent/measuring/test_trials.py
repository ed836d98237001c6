from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import psutil
import pytest

from fleetfit.agent.measuring import seats, trials
from fleetfit.core.children import EXIT_OUT_OF_MEMORY
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.samples import as_openvino

from ...runtimes.builds import affine, hungry, repeated
from .tasks import MS, pair_here, prepare, refused_here, solo_here

WIDE = np.ones((4, 3), np.float32)


def test_a_solo_trial_brings_raw_samples_and_memory(tmp_path: Path) -> None:
    prepare(tmp_path, affine())
    result = solo_here(tmp_path)
    run = result.solo
    assert (result.runtime, bool(result.runtime_version)) == ("onnxruntime", True)
    assert len(run.latency_ns) == 20 and all(sample > 0 for sample in run.latency_ns)
    assert run.load_ns > 0 and run.first_inference_ns > 0 and run.warmup_samples > 0
    assert run.peak_memory_bytes >= run.floor_memory_bytes > 1 << 20
    assert run.window.begin_monotonic_ns + run.load_ns < run.window.end_monotonic_ns
    assert not result.HasField("metric")


def test_a_solo_trial_may_go_on_without_a_pause(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), method={"sustained_ns": 60 * MS})
    run = solo_here(tmp_path).solo
    sustained = run.sustained
    assert len(run.latency_ns) == 20 and sustained.calls >= len(sustained.latency_ns) > 1
    assert len(sustained.latency_ns) == -(-sustained.calls // sustained.every)
    # Its own stretch of time, and memory was read before it.
    assert run.window.end_monotonic_ns <= sustained.window.begin_monotonic_ns
    assert sustained.window.end_monotonic_ns - sustained.window.begin_monotonic_ns >= 60 * MS
    prepare(tmp_path, affine())
    assert not solo_here(tmp_path).solo.HasField("sustained")


def test_a_solo_trial_that_runs_out_of_time_keeps_the_fewest_samples(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), method={"solo_samples": 1000, "solo_limit_ns": 0})
    assert len(solo_here(tmp_path).solo.latency_ns) == 5


def test_the_metric_comes_after_the_samples(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), data={"x": np.ones((9, 4), np.float32), "targets": np.zeros(9, np.int64)})
    result = solo_here(tmp_path)
    assert result.solo.window.end_monotonic_ns <= result.metric.window.begin_monotonic_ns
    assert result.metric.window.begin_monotonic_ns < result.metric.window.end_monotonic_ns


@pytest.mark.parametrize("number", [0, 1, 2])
def test_the_build_that_is_loaded_first_alternates(tmp_path: Path, number: int) -> None:
    prepare(tmp_path, affine(), baseline=affine(WIDE))
    assert pair_here(tmp_path, number).candidate_loaded_first == (number % 2 == 0)


def test_a_pair_trial_has_both_builds_in_every_round(tmp_path: Path) -> None:
    task = prepare(tmp_path, affine(), baseline=affine(WIDE), method={"blocks_per_process": 6})
    run = pair_here(tmp_path)
    assert len(run.blocks) == 12
    for first, second in zip(run.blocks[::2], run.blocks[1::2], strict=True):
        assert {first.candidate, second.candidate} == {True, False}
    for block in run.blocks:
        assert block.latency_ns and all(sample > 0 for sample in block.latency_ns)
        # Samples of a block that ends at its size or at four times its length.
        assert sum(block.latency_ns[:-1]) <= 4 * task.method.block_ns
    spent = sum(sample for block in run.blocks for sample in block.latency_ns)
    assert spent < run.window.end_monotonic_ns - run.window.begin_monotonic_ns


def test_the_order_of_blocks_is_drawn_and_can_be_drawn_again(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), baseline=affine(WIDE), method={"blocks_per_process": 8})
    orders = [[block.candidate for block in pair_here(tmp_path, number).blocks] for number in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]
    # Not simply one and then the other.
    assert any(first == second for first, second in pairwise(orders[0]))


def test_a_method_without_blocks_has_one_round(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), baseline=affine(WIDE), method={"blocks_per_process": 0})
    assert len(pair_here(tmp_path).blocks) == 2


def test_a_pair_trial_that_runs_out_of_time_keeps_the_fewest_rounds(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), baseline=affine(WIDE), method={"blocks_per_process": 500, "child_limit_ns": 0})
    assert len(pair_here(tmp_path).blocks) == 2 * 3


def test_rounds_go_on_until_the_process_has_told_its_ratio(tmp_path: Path) -> None:
    """A precision that no machine reaches, against one that any has."""
    more = {"blocks_per_process": 4, "more_rounds_limit_ns": 300 * MS}
    prepare(tmp_path, affine(), baseline=affine(WIDE), method=more | {"precision": 1e-9})
    blocks = pair_here(tmp_path).blocks
    assert len(blocks) > 2 * 4 and len(blocks) % 2 == 0
    prepare(tmp_path, affine(), baseline=affine(WIDE), method=more | {"precision": 1e9})
    assert len(pair_here(tmp_path).blocks) == 2 * 4


def test_a_slow_build_gets_the_samples_of_a_p95(tmp_path: Path) -> None:
    """All processes together; a method that asks for no precision, or sustains, takes none for it."""
    slow = {"solo_limit_ns": 0, "precision": 1e9, "pair_processes": 6, "blocks_per_process": 12}
    for changed, alone, beside in (
        (slow, 130, 58),
        (slow | {"precision": 0}, 5, 5),
        (slow | {"sustained_ns": 1}, 5, 5),
    ):
        prepare(tmp_path, affine(), method=changed)
        assert len(solo_here(tmp_path).solo.latency_ns) == alone
        prepare(tmp_path, affine(), baseline=affine(WIDE), method=changed)
        assert len(solo_here(tmp_path).solo.latency_ns) == beside


def test_rounds_fill_their_time_where_the_fewest_do_not(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), baseline=affine(WIDE), method={"blocks_per_process": 3, "rounds_ns": 100 * MS})
    run = pair_here(tmp_path)
    assert len(run.blocks) > 2 * 3
    assert run.window.end_monotonic_ns - run.window.begin_monotonic_ns >= 100 * MS


def test_a_slow_build_has_one_sample_per_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seats, "SLOW_CALL_NS", 0)
    prepare(tmp_path, affine(), baseline=affine(WIDE))
    assert {len(block.latency_ns) for block in pair_here(tmp_path).blocks} == {1}


@pytest.mark.parametrize("number", [0, 1])
def test_builds_of_two_runtimes_are_timed_in_turn_in_a_process_each(tmp_path: Path, number: int) -> None:
    _beside_openvino(tmp_path, as_openvino(affine(WIDE)))
    before = _children()
    run = pair_here(tmp_path, number)
    assert run.candidate_loaded_first == (number == 0)
    for first, second in zip(run.blocks[::2], run.blocks[1::2], strict=True):
        assert {first.candidate, second.candidate} == {True, False}
    assert len(run.blocks) == 6 and all(sample > 0 for block in run.blocks for sample in block.latency_ns)
    spent = sum(sample for block in run.blocks for sample in block.latency_ns)
    assert spent < run.window.end_monotonic_ns - run.window.begin_monotonic_ns
    assert _children() <= before


def test_what_the_other_process_refuses_is_told(tmp_path: Path) -> None:
    _beside_openvino(tmp_path, affine(WIDE))
    before = _children()
    assert "not an archive of model.xml, model.bin" in refused_here(tmp_path, "pair")
    assert _children() <= before


def test_memory_that_the_other_process_cannot_have_has_an_exit_code(tmp_path: Path) -> None:
    _beside_openvino(tmp_path, as_openvino(repeated(1 << 38)))
    assert trials.main([str(tmp_path), str(tmp_path / "out.pb"), "pair", "0"]) == EXIT_OUT_OF_MEMORY


def test_the_other_process_may_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _beside_openvino(tmp_path, as_openvino(affine(WIDE)))
    asked = seats.SeatApart.block
    before = _children()

    def killed(seat: seats.SeatApart, count: int, limit_ns: int) -> list[int]:
        for child in _children() - before:
            child.kill()
        return asked(seat, count, limit_ns)

    monkeypatch.setattr(seats.SeatApart, "block", killed)
    assert "openvino crashed on the build that is timed beside" in refused_here(tmp_path, "pair")


def _children() -> set[psutil.Process]:
    """Others' too: servers and agents of other tests may live as long as the process that runs them all."""
    return set(psutil.Process().children())


def _beside_openvino(folder: Path, baseline: bytes) -> None:
    pytest.importorskip("openvino")
    task = prepare(folder, affine(), baseline=baseline)
    task.baseline.runtime = "openvino"
    (folder / "task.pb").write_bytes(task.SerializeToString())


@pytest.mark.parametrize("kind", ["solo", "pair"])
def test_another_batch_than_the_builds_own_is_refused(tmp_path: Path, kind: str) -> None:
    prepare(tmp_path, affine(batch=4), baseline=affine(batch=4), batch=4)
    assert refused_here(tmp_path, kind) == "the build takes batches of 4 only; measure it with --batch 4"


def test_a_runtime_that_is_not_here_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path, affine(), runtime="abacus")
    assert "knows no runtime 'abacus'" in refused_here(tmp_path)


@pytest.mark.parametrize("kind", ["solo", "pair"])
def test_memory_that_cannot_be_had_has_an_exit_code(tmp_path: Path, kind: str) -> None:
    prepare(tmp_path, affine() if kind == "pair" else hungry(), baseline=hungry(), method={"warmup_limit_ns": 1 * MS})
    assert trials.main([str(tmp_path), str(tmp_path / "out.pb"), kind, "0"]) == EXIT_OUT_OF_MEMORY
    assert not (tmp_path / "out.pb").exists()


def test_a_result_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    prepare(tmp_path, affine())
    solo_here(tmp_path)
    assert not (tmp_path / "out.new").exists()
    assert measurement_pb2.MeasurementResult.FromString((tmp_path / "out.pb").read_bytes()).HasField("solo")
