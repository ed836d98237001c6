"""`fleetfit compress --local`: one recipe on one file, with no server."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fleetfit.client.commands.recipes import read_recipe
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.requests import Wanted, limits_given
from fleetfit.client.tables.words import count, duration, significant, size
from fleetfit.core.errors import NotFound, UsageError
from fleetfit.core.metrics import metric_info

if TYPE_CHECKING:
    from fleetfit.compress.recipe import Recipe
    from fleetfit.compress.tasks import CompressFacts, Limits


def compress_here(
    model: Path,
    data: str,
    recipes: Sequence[str],
    out: Path | None,
    *,
    metric: str,
    seed: int,
    threads: Sequence[int],
    runtimes: Sequence[str],
    device_profile: str,
    max_drop: str,
    max_size_mb: float | None,
    compute: Literal["auto", "cpu", "cuda"],
    as_json: bool,
) -> None:
    """Carry the recipe out, fitted to the device of that profile, and show what each of its steps did."""
    if len(recipes) != 1:
        raise UsageError("--local carries out one recipe; name it with --recipe NAME_OR_FILE", field="recipe")
    if out is None:
        raise UsageError("no folder is named; give -o DIR for the build and its lineage", field="output")
    if len(threads) > 1:
        raise UsageError("--local computes with one number of threads; give one", field="threads")
    if metric.startswith("user:") or (":" in metric and "." in metric.partition(":")[0]):
        raise UsageError(
            "--local judges by fleetfit's own metrics; score with your own after it, or let devices measure with --on and "
            "`fleetfit scorer`",
            field="metric",
        )
    # The only command that compresses: these are not imported by any other.
    from fleetfit.compress.local import compress_local

    recipe, fitting = _fitted(read_recipe(recipes[0]), device_profile)
    limits = _limits(max_drop, max_size_mb)
    output = Output(as_json)
    with Follower() as told:
        result = compress_local(
            model,
            Path(data) if data else None,
            recipe,
            out,
            metric=metric,
            seed=seed,
            threads=threads[0] if threads else 1,
            runtimes=runtimes or ["onnxruntime"],
            limits=limits,
            compute=compute,
            report=lambda fraction, activity: told(activity, fraction),
        )
    missed = _missed(result, limits)
    if as_json:
        output.json({"folder": str(out), "notes": [*fitting, *missed], "result": result.model_dump(mode="json")})
        return
    from fleetfit.client.tables.plain_table import table

    rows = []
    for step in result.lineage:
        judged = "-" if step.metric is None else significant(step.metric.value, 4)
        rows.append((step.pass_name, count(step.parameters), size(step.weight_bytes), judged, duration(step.seconds)))
    named = next((step.metric.name for step in result.lineage if step.metric is not None), "metric").upper()
    columns = [("STEP", ""), ("PARAMETERS", "right"), ("WEIGHTS", "right"), (named, "right"), ("TOOK", "right")]
    output.show(table(columns, rows))
    for build in result.builds:
        output.say(f"\n{out / build.file}: {size(build.size_bytes)}, for {build.runtime}")
    for note in [*fitting, *missed, *result.notes]:
        output.say(f"note: {note}")
    output.say("nothing was measured on a device: whether it is faster there, `fleetfit compress --on DEVICE` says")


def _limits(max_drop: str, max_size_mb: float | None) -> Limits | None:
    """What the build must hold, as a server would be asked for it."""
    from fleetfit.compress.tasks import Limits

    if not max_drop and max_size_mb is None:
        return None
    given = limits_given(Wanted("", max_drop=max_drop, max_size_mb=max_size_mb))
    return Limits(
        max_drop_points=given.max_drop_points if given.HasField("max_drop_points") else None,
        max_drop_percent=given.max_drop_percent if given.HasField("max_drop_percent") else None,
        max_size_bytes=given.max_size_bytes if given.HasField("max_size_bytes") else None,
    )


def _missed(result: CompressFacts, limits: Limits | None) -> list[str]:
    """Which limits the finished builds do not hold; whether they could was judged on the way."""
    if limits is None:
        return []
    most = limits.max_size_bytes
    found = [
        f"{build.file} has {size(build.size_bytes)}, and at most {size(most)} is allowed"
        for build in result.builds
        if most is not None and build.size_bytes > most
    ]
    before, after = result.lineage[0].metric, result.lineage[-1].metric
    if before is None or after is None:
        return found
    allowed = limits.most_lost(before.value)
    sign = 1 if metric_info(before.name).higher_is_better else -1
    lost = sign * (before.value - after.value)
    if allowed is not None and lost > allowed:
        found.append(
            f"it is {significant(lost, 3)} worse in {before.name}, and at most {significant(allowed, 3)} is allowed"
        )
    return found


def _fitted(recipe: Recipe, name: str) -> tuple[Recipe, list[str]]:
    """The recipe with the widths of that kind of device, and a note where these were written in. Raises NotFound.

    Without a name it is not this machine that counts, which is seldom the device: the same command gives the same build
    everywhere.
    """
    from fleetfit.device_profiles.loader import load_profiles
    from fleetfit.device_profiles.schema import USUAL_ROUND_TO

    known = load_profiles()
    if name and name not in known:
        near = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(known)}"
        raise NotFound(f"there is no device profile '{name}'; {hint}", field="device_profile")
    round_to = known[name].round_to if name else USUAL_ROUND_TO
    fitted = recipe.fitted(round_to)
    if fitted == recipe:
        return recipe, []
    why = f"which {name} likes" if name else "which most processors like; --device-profile NAME takes a device's"
    return fitted, [f"widths are rounded up to multiples of {round_to}, {why}"]
