"""Check of what stands before and behind a model and is never compressed: each an ONNX file, and each fits the next.

Values go by name: `pre` gives everything that the model takes, `post` takes what the model gives, or what `pre` gives beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fleetfit.compress.intake.onnx import check_onnx
from fleetfit.compress.tasks import ModelFacts, ModelPart, PartName, Tensor
from fleetfit.core.errors import InvalidModel


def check_parts(model: ModelFacts, files: Mapping[PartName, Path]) -> ModelFacts:
    """What is known of `model`, with that of its parts.

    Raises:
        InvalidModel: A part is no ONNX file that ONNX Runtime runs, or does not fit the model; the sentence names both sides.
    """
    parts: dict[PartName, ModelPart] = {}
    notes = list(model.notes)
    if "pre" in files:
        found = _checked("pre", files["pre"], (), finite=True)
        _refuse_free_sizes(found.inputs)
        _check_fit("the model", model.inputs, {"the pre part": found.outputs})
        _refuse_double_names(found.outputs, model.outputs)
        parts["pre"] = found
    if "post" in files:
        before = parts["pre"].outputs if "pre" in parts else []
        # Boxes of which none is left, or a score of 0 behind a logarithm: what comes last may be anything.
        found = _checked("post", files["post"], [*before, *model.outputs], finite=False)
        givers = {"the model": model.outputs} | ({"the pre part": before} if before else {})
        _check_fit("the post part", found.inputs, givers)
        parts["post"] = found
    for name, part in parts.items():
        fixed = next((tensor.shape[0] for tensor in part.inputs if tensor.shape[0] > 0), None)
        if fixed is not None and any(tensor.shape[0] < 0 for tensor in model.inputs):
            notes.append(f"The {name} part takes batches of {fixed} only; end to end is timed for that batch alone.")
    return model.model_copy(update={"parts": parts, "notes": notes})


def _checked(name: PartName, path: Path, given: Sequence[Tensor], *, finite: bool) -> ModelPart:
    try:
        facts = check_onnx(path, given=given, finite=finite)
    except InvalidModel as error:
        raise InvalidModel(f"The {name} part cannot be used. {error.message}", private=error.private) from error
    return ModelPart(inputs=facts.inputs, outputs=facts.outputs)


def _refuse_free_sizes(inputs: Sequence[Tensor]) -> None:
    for tensor in inputs:
        if any(size < 0 for size in tensor.shape[1:]):
            raise InvalidModel(
                f"The pre part takes '{tensor.name}' as {_shape(tensor)}, and how long it takes depends on its free sizes (-1); "
                "export it for the sizes that you serve, with only the first axis free."
            )


def _refuse_double_names(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    double = {tensor.name for tensor in ours} & {tensor.name for tensor in theirs}
    if double:
        raise InvalidModel(
            f"The pre part and the model both give '{min(double)}', and what comes behind them could not tell which is meant; "
            "rename that output of the pre part."
        )


def _check_fit(taker: str, taken: Sequence[Tensor], givers: Mapping[str, Sequence[Tensor]]) -> None:
    """Every input of `taker` comes from one of the givers, in its dtype and a shape that can be its own."""
    for wanted in taken:
        giver, found = next(
            ((giver, tensor) for giver, given in givers.items() for tensor in given if tensor.name == wanted.name),
            ("", None),
        )
        if found is None:
            offered = " and ".join(
                f"{name} gives {', '.join(repr(tensor.name) for tensor in given)}" for name, given in givers.items()
            )
            raise InvalidModel(
                f"{_begin(taker)} takes '{wanted.name}', and nothing before it gives that: {offered}. Let the names agree."
            )
        if found.dtype != wanted.dtype:
            raise InvalidModel(
                f"{_begin(giver)} gives '{found.name}' as {found.dtype}, where {taker} takes {wanted.dtype}; let the types agree, "
                "with a Cast in the part."
            )
        if not _can_be(found.shape, wanted.shape):
            raise InvalidModel(
                f"{_begin(giver)} gives '{found.name}' as {_shape(found)}, where {taker} takes {_shape(wanted)}; let the shapes "
                "agree (-1 is a size that may vary)."
            )


def _can_be(given: Sequence[int], taken: Sequence[int]) -> bool:
    return len(given) == len(taken) and all(a == b or min(a, b) < 0 for a, b in zip(given, taken, strict=True))


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"


def _begin(text: str) -> str:
    return text[0].upper() + text[1:]
