"""`fleetfit compress --local`: one recipe on one file, with no server."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfit.client.commands.recipes import read_recipe
from fleetfit.client.output import Output
from fleetfit.client.progress import Follower
from fleetfit.client.tables.words import count, duration, significant, size
from fleetfit.core.errors import NotFound, UsageError

if TYPE_CHECKING:
    from fleetfit.compress.recipe import Recipe


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
    as_json: bool,
) -> None:
    """Carry the recipe out, fitted to the device of that profile, and show what each of its steps did."""
    if len(recipes) != 1:
        raise UsageError("--local carries out one recipe; name it with --recipe NAME_OR_FILE", field="recipe")
    if out is None:
        raise UsageError("no folder is named; give -o DIR for the build and its lineage", field="output")
    if len(threads) > 1:
        raise UsageError("--local computes with one number of threads; give one", field="threads")
    # The only command that compresses: these are not imported by any other.
    from fleetfit.compress.local import compress_local

    recipe, fitting = _fitted(read_recipe(recipes[0]), device_profile)
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
            report=lambda fraction, activity: told(activity, fraction),
        )
    if as_json:
        output.json({"folder": str(out), "notes": fitting, "result": result.model_dump(mode="json")})
        return
    from fleetfit.client.tables.lists import table

    rows = []
    for step in result.lineage:
        judged = "-" if step.metric is None else significant(step.metric.value, 4)
        rows.append((step.pass_name, count(step.parameters), size(step.weight_bytes), judged, duration(step.seconds)))
    named = next((step.metric.name for step in result.lineage if step.metric is not None), "metric").upper()
    columns = [("STEP", ""), ("PARAMETERS", "right"), ("WEIGHTS", "right"), (named, "right"), ("TOOK", "right")]
    output.show(table(columns, rows))
    for build in result.builds:
        output.say(f"\n{out / build.file}: {size(build.size_bytes)}, for {build.runtime}")
    for note in [*fitting, *result.notes]:
        output.say(f"note: {note}")
    output.say("nothing was measured on a device: whether it is faster there, `fleetfit compress --on DEVICE` says")


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
