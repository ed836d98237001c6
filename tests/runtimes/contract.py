"""The contract of `Runtime`: what every adapter is tested on. A class that inherits it says on which, by `name`."""

from __future__ import annotations

import asyncio
import gc
import re
import weakref
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from fleetfit.core.children import Limits, run_child
from fleetfit.core.errors import FleetfitError, InvalidModel, UnsupportedHere
from fleetfit.runtimes.base import Runtime
from fleetfit.runtimes.registry import runtimes

from .builds import SAMPLES, WEIGHTS, Samples

ADAPTERS = {name: adapter for name, adapter in runtimes().items() if isinstance(adapter, Runtime)}


def rows(count: int) -> NDArray[np.float32]:
    return np.random.default_rng(count).standard_normal((count, 4)).astype(np.float32)


def is_one_sentence(error: FleetfitError) -> bool:
    return "\n" not in error.message and "Traceback" not in error.message and 20 < len(error.message) < 500


def _seconds_of_threads() -> dict[int, float]:
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process().threads()}


class RuntimeContract:
    """Tests of the adapter `name`."""

    @pytest.fixture
    def adapter(self, name: str) -> Runtime:
        adapter = ADAPTERS[name]
        availability = adapter.availability()
        if not availability.available:
            pytest.skip(availability.reason)
        return adapter

    @pytest.fixture
    def samples(self, adapter: Runtime) -> Samples:
        for format in adapter.formats:
            if format in SAMPLES:
                return SAMPLES[format]
        pytest.skip(f"tests/runtimes/builds.py makes no {' or '.join(adapter.formats)}")

    def test_it_says_what_it_is(self, name: str) -> None:
        adapter = ADAPTERS[name]
        assert adapter.name == name
        assert adapter.formats and all(re.fullmatch(r"[a-z0-9_]+", format) for format in adapter.formats)

    def test_it_is_available_with_a_version_or_says_what_is_missing(self, name: str) -> None:
        availability = ADAPTERS[name].availability()
        if availability.available:
            assert availability.version and availability.providers and not availability.reason
        else:
            assert availability.reason and not availability.version
            with pytest.raises(UnsupportedHere):
                ADAPTERS[name].load(b"", threads=1)

    def test_outputs_come_by_name_with_the_batch_first(self, adapter: Runtime, samples: Samples) -> None:
        model = adapter.load(samples.good(), threads=1)
        for count in (1, 5):
            outputs = model.run({"x": rows(count)})
            assert set(outputs) == {"scores", "positive"}
            np.testing.assert_allclose(outputs["scores"], rows(count) @ WEIGHTS, rtol=1e-5, atol=1e-5)
            np.testing.assert_allclose(outputs["positive"], np.maximum(rows(count) @ WEIGHTS, 0), rtol=1e-5, atol=1e-5)
        model.close()

    def test_inputs_are_not_written_to(self, adapter: Runtime, samples: Samples) -> None:
        model, feed = adapter.load(samples.good(), threads=1), rows(3)
        model.run({"x": feed})
        model.bind({"x": feed})()
        np.testing.assert_array_equal(feed, rows(3))
        model.close()

    def test_a_bound_call_can_be_repeated_and_changes_no_result(self, adapter: Runtime, samples: Samples) -> None:
        model = adapter.load(samples.good(), threads=1)
        before = model.run({"x": rows(3)})
        call = model.bind({"x": rows(2)})
        for _ in range(20):
            call()
        after = model.run({"x": rows(3)})
        for name in before:
            np.testing.assert_array_equal(before[name], after[name])
        model.close()

    def test_a_bound_call_keeps_its_inputs_alive(self, adapter: Runtime, samples: Samples) -> None:
        model, feed = adapter.load(samples.good(), threads=1), rows(4)
        call = model.bind({"x": feed})
        alive = weakref.ref(feed)
        del feed
        gc.collect()
        assert alive() is not None
        call()
        del call
        gc.collect()
        assert alive() is None
        model.close()

    @pytest.mark.parametrize("damage", ["nothing", "noise", "half", "text"])
    def test_bytes_that_are_no_build_are_refused_in_a_sentence(
        self, adapter: Runtime, samples: Samples, damage: str
    ) -> None:
        good = samples.good()
        build = {"nothing": b"", "noise": bytes(range(256)) * 4, "half": good[: len(good) // 2], "text": b"hello\n"}
        with pytest.raises(InvalidModel) as refused:
            adapter.load(build[damage], threads=1)
        assert is_one_sentence(refused.value)

    @pytest.mark.parametrize("feeds", [{}, {"x": np.ones((2, 5), np.float32)}, {"x": np.ones((2, 4), np.int8)}])
    def test_inputs_that_do_not_fit_are_refused_in_a_sentence(
        self, adapter: Runtime, samples: Samples, feeds: dict[str, NDArray[np.float32]]
    ) -> None:
        model = adapter.load(samples.good(), threads=1)
        for use in (model.run, model.bind):
            with pytest.raises(InvalidModel) as refused:
                use(feeds)
            assert is_one_sentence(refused.value)
        model.close()

    @pytest.mark.parametrize("location", ["weights.bin", "./weights.bin", "../weights.bin", "absolute"])
    def test_data_outside_the_build_cannot_be_reached(
        self,
        adapter: Runtime,
        samples: Samples,
        location: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        if samples.external is None:
            return  # builds of this format hold all their data
        here = tmp_path / "here"
        here.mkdir()
        for folder in (tmp_path, here):
            (folder / "weights.bin").write_bytes(WEIGHTS.tobytes())
        monkeypatch.chdir(here)
        with pytest.raises(InvalidModel) as refused:
            adapter.load(samples.external(location.replace("absolute", str(here / "weights.bin"))), threads=1)
        assert is_one_sentence(refused.value)
        assert "one file" in refused.value.message

    @pytest.mark.parametrize("threads", [1, 3])
    def test_no_more_threads_work_than_asked_for(self, adapter: Runtime, samples: Samples, threads: int) -> None:
        model = adapter.load(samples.good(), threads=threads)
        call = model.bind({"x": rows(8_000)})
        before = _seconds_of_threads()
        spent: list[float] = []
        while max(spent, default=0.0) < 0.3:
            call()
            spent = [seconds - before.get(thread, 0.0) for thread, seconds in _seconds_of_threads().items()]
        # Others may sleep there, or start the work and wait.
        assert len([seconds for seconds in spent if seconds > max(spent) / 10]) <= threads
        model.close()

    def test_closing_twice_is_closing_once(self, adapter: Runtime, samples: Samples) -> None:
        model = adapter.load(samples.good(), threads=2)
        model.run({"x": rows(1)})
        model.close()
        model.close()

    def test_memory_that_cannot_be_had_is_a_memory_error(
        self, adapter: Runtime, samples: Samples, tmp_path: Path
    ) -> None:
        """In a child: the limit stays with the process."""
        (tmp_path / "build").write_bytes(samples.hungry(1 << 29))
        code = (
            "from fleetfit.core.children import limit_self; limit_self()\n"
            "import sys, numpy\n"
            "from pathlib import Path\n"
            "from fleetfit.runtimes.registry import runtime\n"
            "feeds = {'x': numpy.ones((1, 4), numpy.float32)}\n"
            "for use in ('run', 'bind'):\n"
            "    try:\n"
            f"        model = runtime({adapter.name!r}).load(Path('build').read_bytes(), threads=1)\n"
            "        getattr(model, use)(feeds)\n"
            "    except MemoryError:\n"
            "        continue\n"
            "    sys.exit('no MemoryError')\n"
        )
        outcome = asyncio.run(run_child(["-c", code], Limits(memory_bytes=1 << 30, wall_s=60), cwd=tmp_path))
        # What a library itself writes there is its own affair.
        assert outcome.kind == "ok" and "Traceback" not in outcome.stderr_tail, outcome.stderr_tail
