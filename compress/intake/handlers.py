"""The three intake tasks of `fleetfit.compress.tasks`, as `fleetfit.compress.run` calls them.

Files come from `TASKDIR/in/<name>`, what is made goes to `TASKDIR/out/<name>`. Whatever is wrong with what the user gave
is raised as `InvalidModel` or `InvalidData`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fleetfit.compress.tasks import (
    DataFacts,
    IntakeData,
    IntakeModel,
    ModelFacts,
    RecoveredFacts,
    Task,
    TaskProgress,
    Trainable,
)
from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import InternalError

Progress = Callable[[TaskProgress], None]


def intake_model(task: Task, taskdir: Path, progress: Progress) -> ModelFacts:
    """Check `in/model` and say what is in it; `in/pre` and `in/post` too, where the task names them.

    Raises:
        InvalidModel: The file is damaged, dangerous, or does not compute what it should; or a part does not fit the model.
    """
    work = task.work
    if not isinstance(work, IntakeModel):
        raise InternalError(
            f"A task of kind {work.kind} was given to the model intake; this is a bug, please report it."
        )
    source = taskdir / "in"
    facts = _model_facts(source / "model", work.format, progress)
    if not work.parts:
        return facts
    from fleetfit.compress.intake.parts import check_parts

    progress(TaskProgress(activity="checking the parts before and behind the model", fraction=1.0))
    return check_parts(facts, {name: source / name for name in work.parts})


def _model_facts(path: Path, form: str, progress: Progress) -> ModelFacts:
    progress(TaskProgress(activity="checking the model file", fraction=0.0))
    if form == "onnx":
        from fleetfit.compress.intake.onnx import check_onnx

        return check_onnx(path)
    from fleetfit.compress.intake.pt2 import load_pt2

    model = load_pt2(path, progress=lambda activity, part: progress(TaskProgress(activity=activity, fraction=part)))
    return model.facts()


def intake_data(task: Task, taskdir: Path, progress: Progress) -> DataFacts:
    """Check `in/data` (and `in/test` where `own_test`), and write the splits to `out/`.

    Raises:
        InvalidData: The arrays are damaged, or do not fit the model.
    """
    work = task.work
    if not isinstance(work, IntakeData):
        raise InternalError(
            f"A task of kind {work.kind} was given to the data intake; this is a bug, please report it."
        )
    from fleetfit.compress.intake.data import check_and_split

    progress(TaskProgress(activity="checking the arrays", fraction=0.0))
    source = taskdir / "in"
    return check_and_split(source / "data", source / "test" if work.own_test else None, work, taskdir / "out")


def intake_recovered(taskdir: Path, progress: Progress) -> RecoveredFacts:
    """Compare `in/trained` with `in/variant`, and write the variant with the trained numbers to `out/recovered.pt2`.

    Raises:
        InvalidModel: The file is damaged or dangerous, or is another network than the variant's.
    """
    from fleetfit.compress.intake.pt2 import load_pt2
    from fleetfit.compress.intake.recovered import take_over

    progress(TaskProgress(activity="checking the model file", fraction=0.0))
    trained = load_pt2(
        taskdir / "in" / "trained",
        progress=lambda activity, part: progress(TaskProgress(activity=activity, fraction=part / 2)),
    )
    progress(TaskProgress(activity="comparing it with the variant", fraction=0.5))
    variant = load_pt2(taskdir / "in" / "variant")
    changed, tensors = take_over(variant, trained)
    path = taskdir / "out" / "recovered.pt2"
    variant.save_pt2(path)
    return RecoveredFacts(
        network=Trainable(file=path.name, size_bytes=path.stat().st_size, sha256=sha256_file(path)),
        parameters=variant.parameters_count(),
        tensors=tensors,
        changed=changed,
        notes=[] if changed else ["No number in it differs from the variant's: it was not trained."],
    )
