"""The whole chain in one fresh process: `pre`, a build and `post` called in a row, and each by itself, in turn.

The chain is called as an application calls it: every part makes its outputs anew, and they are handed to the next. So a call of
the build here costs a little more than the bound one that its own latency is measured on. Blocks of the chain with the candidate,
of the chain with the baseline and of each part stand next to each other in time, in an order that is drawn for each round.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from numpy.typing import NDArray

from fleetfit.agent.measuring.inputs import fixed_batch, made_up
from fleetfit.agent.measuring.seats import Blocks, feeds_of
from fleetfit.agent.measuring.timing import FOR_P95, Call, take_samples, warm_up
from fleetfit.core.errors import InvalidModel
from fleetfit.proto.v1 import measurement_pb2
from fleetfit.runtimes.base import LoadedModel
from fleetfit.runtimes.registry import runtime

Link = measurement_pb2.ChainLink
Values = Mapping[str, NDArray[Any]]
PARTS_RUNTIME: Final = "onnxruntime"
_FEWEST_ROUNDS: Final = 3
# For a chain so slow that its rounds would take longer than this many limits, fewer must do.
_PATIENCE: Final = 5


class _Part:
    """A loaded part with the names of what it takes; `name` is for sentences."""

    def __init__(self, name: str, model: LoadedModel, ref: measurement_pb2.BuildRef) -> None:
        self._name = name
        self._model = model
        self._takes = [spec.name for spec in ref.inputs]

    def run(self, values: Values) -> dict[str, NDArray[Any]]:
        """What it gives for its inputs among `values`. Raises InvalidModel where one is missing, or it does not run."""
        try:
            return self._model.run({name: values[name] for name in self._takes})
        except KeyError as error:
            raise InvalidModel(
                f"nothing before {self._name} gives {error}, which it takes; push the model again"
            ) from None
        except InvalidModel as error:
            raise InvalidModel(f"{self._name} does not run in the chain: {error.message}") from error

    def close(self) -> None:
        self._model.close()


class Chain:
    """All parts of a task in this process. To be closed."""

    def __init__(self, task: measurement_pb2.MeasureTask, taskdir: Path, *, candidate_first: bool, both: bool) -> None:
        self._parts: list[_Part] = []
        folder = taskdir / "in"
        adapter = runtime(PARTS_RUNTIME)
        self.parts_runtime_version = adapter.availability().version
        self._pre = self._part("the pre part", task.pre, folder, task) if task.HasField("pre") else None
        self._post = self._part("the post part", task.post, folder, task) if task.HasField("post") else None
        self._given: Values = (
            {spec.name: made_up(spec, task.batch) for spec in task.pre.inputs}
            if self._pre is not None
            else feeds_of(task, taskdir)
        )
        fed = self._before()
        cores: dict[bool, _Part] = {}
        for which in (candidate_first, not candidate_first) if both else (True,):
            ref = task.candidate if which else task.baseline
            build = (folder / ref.artifact_name).read_bytes()
            runtime(ref.runtime).prepare(build, {s.name: fed[s.name] for s in ref.inputs}, threads=task.threads)
            cores[which] = self._part("the build", ref, folder, task)
        self.links = self._links(cores, fed)

    def _part(self, name: str, ref: measurement_pb2.BuildRef, folder: Path, task: measurement_pb2.MeasureTask) -> _Part:
        fixed = fixed_batch(ref)
        if fixed is not None and fixed != task.batch:
            raise InvalidModel(f"{name} takes batches of {fixed} only; measure end to end with --batch {fixed}")
        try:
            model = runtime(ref.runtime).load((folder / ref.artifact_name).read_bytes(), threads=task.threads)
        except InvalidModel as error:
            raise InvalidModel(f"{name} cannot be loaded: {error.message}") from error
        part = _Part(name, model, ref)
        self._parts.append(part)
        return part

    def _before(self) -> dict[str, NDArray[Any]]:
        return self._pre.run(self._given) if self._pre is not None else dict(self._given)

    def _links(self, cores: Mapping[bool, _Part], fed: Values) -> dict[Link.ValueType, Call]:
        """What is timed, by its name."""
        pre, post, given, core = self._pre, self._post, self._given, cores[True]
        found: dict[Link.ValueType, Call] = {Link.CHAIN_LINK_WHOLE: self._whole(core)}
        if False in cores:
            found[Link.CHAIN_LINK_BASELINE] = self._whole(cores[False])
        if pre is not None:
            found[Link.CHAIN_LINK_PRE] = _call(pre, given)
        found[Link.CHAIN_LINK_CORE] = _call(core, fed)
        if post is not None:
            found[Link.CHAIN_LINK_POST] = _call(post, {**fed, **core.run(fed)})
        return found

    def _whole(self, core: _Part) -> Call:
        post, before = self._post, self._before

        def call() -> None:
            values = before()
            made = core.run(values)
            if post is not None:
                post.run(values | made)

        return call

    def close(self) -> None:
        """Free everything."""
        self.links = {}
        for part in self._parts:
            part.close()


def _call(part: _Part, values: Values) -> Call:
    def call() -> None:
        part.run(values)

    return call


def time_chain(
    task: measurement_pb2.MeasureTask, taskdir: Path, number: int, step: Callable[[float], None], *, both: bool
) -> measurement_pb2.ChainRun:
    """One process's samples of every link. Without `both` the baseline is left out.

    Raises UnsupportedHere where this device has no ONNX Runtime, InvalidModel where a part does not load or run.
    """
    method = task.method
    run = measurement_pb2.ChainRun(candidate_loaded_first=not both or number % 2 == 0)
    run.window.begin_monotonic_ns = time.monotonic_ns()
    chain = Chain(task, taskdir, candidate_first=run.candidate_loaded_first, both=both)
    try:
        run.parts_runtime_version = chain.parts_runtime_version
        whole = [link for link in chain.links if link in (Link.CHAIN_LINK_WHOLE, Link.CHAIN_LINK_BASELINE)]
        warm = [warm_up(chain.links[link], method.warmup_limit_ns // 2)[1] for link in whole]
        run.steady = all(warm)
        timed = {link: Blocks(call) for link, call in chain.links.items()}
        sizes = {link: blocks.size(method.block_ns) for link, blocks in timed.items()}
        order = random.Random(f"{task.candidate.build_id}/chain/{number}")  # noqa: S311 - an order, not a secret
        began = time.monotonic_ns()
        half = run.window.begin_monotonic_ns + method.child_limit_ns // 2
        rounds = max(method.blocks_per_process, 1)
        wanted = -(-method.solo_samples // max(method.chain_processes, 1))
        samples = 0
        for round_number in itertools.count():
            now = time.monotonic_ns()
            enough = samples >= wanted or now - began > method.solo_limit_ns
            late = now > half or now - began > _PATIENCE * method.solo_limit_ns
            if (round_number >= rounds and enough) or (round_number >= _FEWEST_ROUNDS and late):
                break
            for link in order.sample(_in_order(timed), len(timed)):
                block = timed[link].block(sizes[link], method.block_ns * 4)
                run.blocks.add(link=link).latency_ns.extend(block)
                samples += len(block) if link == Link.CHAIN_LINK_WHOLE else 0
            step(min((round_number + 1) / rounds, 1.0))
        missing = -(-FOR_P95 // max(method.chain_processes, 1)) - samples
        if missing > 0:
            call, limit_ns = chain.links[Link.CHAIN_LINK_WHOLE], _PATIENCE * method.solo_limit_ns
            run.blocks.add(link=Link.CHAIN_LINK_WHOLE).latency_ns.extend(take_samples(call, missing, limit_ns))
        run.window.end_monotonic_ns = time.monotonic_ns()
    finally:
        chain.close()
    return run


def _in_order(timed: Mapping[Link.ValueType, Blocks]) -> Sequence[Link.ValueType]:
    # What is drawn must not depend on which build was loaded first.
    return sorted(timed)
