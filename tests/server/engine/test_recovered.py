"""Networks that came back from their users' training: their check, their place in a job, and what the report says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from fleetfit.compress.tasks import Compress, TaskError
from fleetfit.core.errors import FleetfitError, InvalidInput, NotFound
from fleetfit.proto.v1 import jobs_pb2, models_pb2

from .harness import PRUNED, TRAINED, House, request

pytestmark = pytest.mark.usefixtures("paper_reports")

QUANTIZED = "{name: small, steps: [activation_pruning: {ratio: 0.5}, quantize: {mode: static}]}"


def play(folder: Path, scenario: Callable[[House], Awaitable[None]]) -> None:
    async def run() -> None:
        async with House(folder) as house:
            await scenario(house)

    asyncio.run(run())


async def job_of(house: House, *recipes: str, **more: Any) -> Any:
    """The report of a job on the only device."""
    job = await house.engine.create_job(request(*recipes, **more), "")
    assert (await house.ended(job.job_id)).state == jobs_pb2.JOB_STATE_DONE
    return (await house.report(job.job_id))["devices"][0]


async def push(house: House, variant: str, content: bytes = b"trained", owner: str = "local") -> models_pb2.Recovered:
    reference = await house.upload(content)
    messages = [one async for one in house.engine.push_recovered(variant, reference.sha256, owner)]
    return messages[-1].recovered


def named(device: Any) -> dict[str, Any]:
    return {c["recipe"]: c for c in device["candidates"]}


def test_a_trained_network_is_a_candidate_beside_the_recipes(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        (agent,) = await house.furnish("pi")
        house.employ(agent)
        parent = named(await job_of(house, QUANTIZED))["small"]["variant"]
        found = await push(house, parent[:6])
        assert found.state == models_pb2.INTAKE_STATE_ACCEPTED and found.variant.startswith(parent)
        assert (found.model, found.recipe, found.changed, found.tensors) == ("net:1", "small", 3, 4)
        assert (await push(house, parent)).recovered == found.recovered, "the same file again is the same network"
        assert house.executor.runs["intake_recovered"] == 1

        spec = request(QUANTIZED, TRAINED, recovered=[found.recovered[:8]])
        plan = await house.engine.plan(spec)
        assert [c.recipe for c in plan.candidates][-1] == "small-recovered"
        assert any(note.startswith("small-recovered: it was trained by its user") for note in plan.notes)
        device = await job_of(house, QUANTIZED, TRAINED, recovered=[found.recovered[:8]])
        seen = named(device)["small-recovered"]
        assert seen["recovered"] == {"name": found.recovered[:10], "variant": parent, "file": found.artifact.sha256}
        assert (seen["role"], seen["baseline"], seen["status"]) == ("recipe", False, "measured")
        assert seen["variant"] not in (parent, found.recovered[:10])
        assert [step["pass_name"] for step in seen["lineage"]] == [
            "original",
            "activation_pruning",
            "recovered",
            "quantize",
        ]
        assert "whether the original would gain as much from that training is not known" in seen["notes"][0]
        assert f"models pull {named(device)['original']['variant']} --trainable" in seen["notes"][0]
        assert all(c["recovered"] is None for c in device["candidates"] if c is not seen)

        task, inputs = house.executor.last["small-recovered"]
        assert isinstance(task.work, Compress) and task.work.recovered is not None
        assert [step.pass_name for step in task.work.recovered.lineage] == ["activation_pruning"]
        assert task.work.recovered.lineage[0].metric is not None, "judged on the same data"
        network = house.store.path(inputs["recovered.pt2"]).read_text()
        assert network.endswith(f"with {found.artifact.sha256}")
        await job_of(house, QUANTIZED, recovered=[found.recovered])
        assert house.executor.runs["small-recovered"] == 1, "made once, whichever jobs ask for it"

        # Made into a variant it can be pulled, trained and pushed again.
        again = await push(house, seen["variant"], b"trained twice")
        last = named(await job_of(house, PRUNED, recovered=[again.recovered]))["small-recovered-recovered"]
        assert [step["pass_name"] for step in last["lineage"]][2:] == ["recovered", "recovered", "quantize"]

    play(tmp_path / "house", scenario)


def test_an_original_that_its_user_trained_is_a_control(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        (agent,) = await house.furnish("pi")
        house.employ(agent)
        first = named(await job_of(house, PRUNED))
        names = [(await push(house, first[recipe]["variant"])).recovered for recipe in ("original", "pruned")]
        other = (await push(house, first["pruned"]["variant"], b"trained otherwise")).recovered
        device = await job_of(house, PRUNED, recovered=[*names, other])
        found = named(device)
        assert (found["original-recovered"]["role"], found["original-recovered"]["baseline"]) == ("control", True)
        assert "a fair control for what the user trained alike" in found["original-recovered"]["notes"][0]
        apart = {f"pruned-recovered-{key[:6]}" for key in (names[1], other)}
        assert apart < set(found), "two of one recipe are told apart"
        assert device["selected"] not in (None, found["original-recovered"]["variant"])

    play(tmp_path / "house", scenario)


def test_what_cannot_be_a_candidate_is_refused_with_a_sentence(tmp_path: Path) -> None:
    async def refused(house: House, kind: type[FleetfitError], said: str, **more: Any) -> None:
        with pytest.raises(kind, match=said):
            await house.engine.plan(request(PRUNED, **more))

    async def scenario(house: House) -> None:
        (agent,) = await house.furnish("pi")
        house.employ(agent)
        parent = named(await job_of(house, PRUNED))["pruned"]["variant"]
        for owner, text, kind in (
            ("local", f"{parent[:9]}x", NotFound),
            ("another", parent, NotFound),
            ("local", parent[:5], InvalidInput),
        ):
            with pytest.raises(kind):
                await push(house, text, owner=owner)
        missing = [one async for one in _safely(house.engine.push_recovered(parent, "0" * 64))]
        assert isinstance(missing[0], NotFound), "what was not uploaded"

        house.executor.errors["intake_recovered"] = TaskError(
            code="INVALID_MODEL", message="it is not the variant's network"
        )
        bad = await push(house, parent)
        assert (bad.state, bad.refusal) == (models_pb2.INTAKE_STATE_REFUSED, "it is not the variant's network")
        await refused(house, InvalidInput, "was refused: it is not the variant's", recovered=[bad.recovered])
        del house.executor.errors["intake_recovered"]
        good = await push(house, parent)
        assert good.state == models_pb2.INTAKE_STATE_ACCEPTED and good.recovered == bad.recovered, "checked again"

        await refused(house, NotFound, "no recovered network 'fedcba98'", recovered=["fedcba98"])
        await refused(house, InvalidInput, "too short", recovered=[good.recovered[:5]])
        with pytest.raises(NotFound, match="no recovered network"):
            await house.engine.plan(request(PRUNED, recovered=[good.recovered]), "another")
        spec = jobs_pb2.JobSpec(kind=jobs_pb2.JOB_KIND_BENCH, model="net", devices=["pi"], recovered=[good.recovered])
        with pytest.raises(InvalidInput, match="a benchmark measures the model as it is"):
            await house.engine.plan(spec)
        model = await house.upload(b"another model")
        async for _ in house.engine.push_model("other", model.sha256, "pt2"):
            pass
        spec = request(PRUNED, recovered=[good.recovered])
        spec.model = "other"
        with pytest.raises(InvalidInput, match="is of net:1, and this job is of another model, other"):
            await house.engine.plan(spec)

        same = await house.upload(b"a model")
        async for _ in house.engine.push_model("net", same.sha256, "pt2", "another"):
            pass
        theirs = await push(house, parent, owner="another")
        assert theirs.state == models_pb2.INTAKE_STATE_ACCEPTED, "who pushed the same model may train its variants"
        assert theirs.recovered != good.recovered

    play(tmp_path / "house", scenario)


async def _safely(stream: Any) -> Any:
    try:
        async for one in stream:
            yield one
    except FleetfitError as error:
        yield error
