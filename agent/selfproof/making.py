"""Checks this device as far as it can be checked without a server, and keeps all of it in one signed file."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import gzip
import importlib.metadata
import json
import subprocess
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import fleetfit
from fleetfit.agent.__main__ import probe_device
from fleetfit.agent.doctor import examine_device
from fleetfit.agent.selfproof.privacy import Privacy
from fleetfit.agent.silence import silence_limit_s, while_it_tells
from fleetfit.agent.spool import PROGRESS
from fleetfit.core.children import ENGINES_VARIABLE, ChildOutcome, Limits, run_child
from fleetfit.core.errors import NotFound
from fleetfit.core.package import code_digest
from fleetfit.proto.methods import named_method
from fleetfit.proto.selfproof import CheckedRuntime, Code, Raw, Statement, board_of, figures_of, seal
from fleetfit.proto.v1 import common_pb2, measurement_pb2
from fleetfit.runtimes.contract import CHECKS
from fleetfit.runtimes.samples import NETWORK_SHAPE, Samples, samples_of

Tell = Callable[[str, float], None]
# TensorRT builds an engine for most of the checks, minutes each on a small board.
_CONTRACT_LIMIT_S: Final = 3600
_LOOK_S: Final = 0.2
_OF_DEVICE: Final = ("power_mode", "governor", "clocks", "kernel", "processor")


class Maker:
    """Makes one file, in `folder`, which must be empty and is left for the caller to remove."""

    def __init__(self, folder: Path, *, threads: int, emulated: bool, method: str, tell: Tell) -> None:
        self._folder = folder
        self._threads, self._emulated = threads, emulated
        self._method = method
        self._tell = tell
        self._privacy = Privacy()

    async def make(self, names: Sequence[str]) -> bytes:
        """The file's content: every runtime that is available, or those named. Raises NotFound for one that nobody knows."""
        self._tell("looking at this device", 0.0)
        found = await probe_device(self._folder, threads=self._threads, emulated=self._emulated)
        findings = [asdict(one) for one in examine_device(self._folder, found)]
        snapshot = self._privacy.snapshot(found)
        known = [one.name for one in snapshot.runtimes]
        for name in names:
            if name not in known:
                raise NotFound(f"there is no runtime '{name}' here; there are {', '.join(known)}", field="runtime")
        raw: dict[str, Raw] = {}
        runtimes = []
        chosen = [one.name for one in snapshot.runtimes if one.available and (not names or one.name in names)]
        for one in snapshot.runtimes:
            checked = CheckedRuntime(
                name=one.name,
                available=one.available,
                version=one.version,
                providers=list(one.providers),
                reason=one.reason or ("" if one.name in chosen else "it was left out by --runtime"),
            )
            if one.name in chosen:
                at = (chosen.index(one.name), len(chosen))
                checked = await self._check(checked, list(one.formats), snapshot.threads, at, raw)
            runtimes.append(checked)
        conditions = [result.condition for result in raw.values()]
        statement = Statement(
            made=datetime.datetime.now(datetime.timezone.utc).replace(microsecond=0),
            code=_code(),
            board=board_of(snapshot),
            emulated=snapshot.emulated,
            threads=snapshot.threads,
            method=self._method,
            condition={key: conditions[0][key] for key in _OF_DEVICE if conditions and conditions[0].get(key)},
            findings=[{key: self._privacy.text(value) for key, value in one.items()} for one in findings],
            runtimes=runtimes,
        )
        return seal(statement, snapshot, raw)

    async def _check(
        self, one: CheckedRuntime, formats: list[str], threads: int, at: tuple[int, int], raw: dict[str, Raw]
    ) -> CheckedRuntime:
        samples = samples_of(formats)
        if samples is None:
            return one.model_copy(
                update={"reason": f"fleetfit ships no build of {' or '.join(formats)} to check it with"}
            )

        def tell(activity: str, done: float) -> None:
            self._tell(f"{one.name}: {activity}", (at[0] + done) / at[1])

        contract = await self._contract(one.name, tell)
        result = self._privacy.result(await self._measure(one.name, samples, threads, tell))
        raw[one.name] = result
        measured = result.status == measurement_pb2.MEASUREMENT_STATUS_MEASURED
        figures = figures_of(result) if measured else None
        return one.model_copy(update={"contract": contract, "figures": figures, "message": result.message})

    async def _contract(self, name: str, tell: Tell) -> dict[str, str]:
        """Every check, and what broke: in a child, which an adapter may crash."""
        out = self._folder / f"{name}.contract"
        answers: dict[str, str] = {}

        def look() -> float:
            with contextlib.suppress(OSError, ValueError):
                answers.update(
                    json.loads(line) for line in out.read_text().splitlines(keepends=True) if line[-1:] == "\n"
                )
            return len(answers) / len(CHECKS) / 2

        arguments = ["-m", "fleetfit.runtimes.contract", name]
        outcome = await self._follow(
            run_child(
                arguments, Limits(wall_s=_CONTRACT_LIMIT_S), cwd=self._folder, environment=self._engines(), stdout=out
            ),
            look,
            lambda done: tell("checking its contract", done),
        )
        if len(answers) < len(CHECKS):
            last = (outcome.stderr_tail.strip().splitlines() or ["it said nothing"])[-1]
            unanswered = [title for title in CHECKS if title not in answers]
            answers[unanswered[0]] = f"its process ended here as {outcome.kind}: {last}"
            answers.update(dict.fromkeys(unanswered[1:], "not reached"))
        return {title: self._privacy.text(answers[title]) for title in CHECKS}

    async def _measure(self, name: str, samples: Samples, threads: int, tell: Tell) -> Raw:
        """The shipped network beside itself, as an agent measures: the ratio must be 1."""
        taskdir = self._folder / f"{name}.task"
        (taskdir / "in").mkdir(parents=True)
        try:
            (taskdir / "in" / "network").write_bytes(samples.network())
        except Exception as error:  # noqa: BLE001 - OpenVINO's is made by the runtime itself
            return Raw(
                status=measurement_pb2.MEASUREMENT_STATUS_NOT_LOADABLE,
                message=f"the network could not be made: {error}",
            )
        build = measurement_pb2.BuildRef(
            artifact_name="network",
            runtime=name,
            build_id="network",
            inputs=[common_pb2.TensorSpec(name="x", dtype="float32", shape=[-1, *NETWORK_SHAPE])],
            outputs=[common_pb2.TensorSpec(name="scores", dtype="float32", shape=[-1, 10])],
        )
        task = measurement_pb2.MeasureTask(
            job_id="selfproof",
            candidate=build,
            baseline=build,
            threads=threads,
            batch=1,
            method=named_method(self._method),
        )
        (taskdir / "task.pb").write_bytes(task.SerializeToString())

        def look() -> float:
            with contextlib.suppress(OSError, ValueError, KeyError):
                return 0.5 + float(json.loads((taskdir / PROGRESS).read_text())["fraction"]) / 2
            return 0.5

        arguments = ["-m", "fleetfit.agent.measuring", str(taskdir)]
        outcome = await self._follow(
            while_it_tells(
                run_child(arguments, Limits(), cwd=taskdir, environment=self._engines()),
                taskdir / PROGRESS,
                silence_limit_s(task.method),
            ),
            look,
            lambda done: tell("measuring a small network", done),
        )
        result, answer = Raw(), taskdir / "result.pb.gz"
        if answer.exists():
            result.ParseFromString(gzip.decompress(answer.read_bytes()))
            return result
        return Raw(
            status=measurement_pb2.MEASUREMENT_STATUS_CRASHED, message=f"the measuring process ended as {outcome.kind}"
        )

    def _engines(self) -> dict[str, str]:
        return {ENGINES_VARIABLE: str(self._folder / "engines")}

    async def _follow(
        self, work: Coroutine[Any, Any, ChildOutcome], look: Callable[[], float], tell: Callable[[float], None]
    ) -> ChildOutcome:
        """Wait for a child, and tell how far it is."""
        child = asyncio.create_task(work)
        try:
            while not child.done():
                tell(look())
                await asyncio.wait({child}, timeout=_LOOK_S)
            look()
            return child.result()
        finally:
            child.cancel()
            await asyncio.gather(child, return_exceptions=True)


def _code() -> Code:
    wheel = None
    with contextlib.suppress(importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        installed = json.loads(importlib.metadata.distribution("fleetfit").read_text("direct_url.json") or "{}")
        wheel = installed["archive_info"]["hashes"]["sha256"]
    return Code(version=fleetfit.__version__, files=code_digest(), wheel=wheel, commit=_commit())


def _commit() -> str | None:
    """Of the checkout that this code lies in; None where it lies in none, or there is no git."""
    checkout = Path(fleetfit.__file__).parent.parent
    if not (checkout / ".git").exists():
        return None
    answers = []
    for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no")):
        command = ["git", "-C", str(checkout), *words]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603 - fixed words
        except (OSError, subprocess.SubprocessError):
            return None
        answers.append(answer.stdout.strip())
    return answers[0] + ("-modified" if answers[1] else "")
