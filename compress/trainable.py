"""`fleetfit.trainable`: a pulled variant as a module that any training code can train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fleetfit.core.errors import NotFound, UnsupportedHere

if TYPE_CHECKING:
    import torch
    from torch import nn

    from fleetfit.compress.graph import LayeredModel

VARIANT_FILE = "variant.pt2"


def trainable(folder: str | Path) -> nn.Module:
    """The network that `fleetfit models pull VARIANT --trainable -o DIR` put into `folder`, in evaluation mode on the CPU.

    It takes the model's inputs by position or name. It returns one tensor, or several as a tuple; where the original named its
    outputs, a dict by those names. Weights whose zeros must stay hold them by a parametrization, which `fleetfit.export` folds
    away again.

    Args:
        folder: The folder, or a `variant.pt2` itself.

    Raises:
        NotFound: There is no such file.
        InvalidModel: The file is damaged, or this torch cannot read it.
        UnsupportedHere: PyTorch, or another package that reading needs, is missing.
    """
    path = Path(folder)
    path = path / VARIANT_FILE if path.is_dir() else path
    if not path.is_file():
        raise NotFound(f"there is no file {path}; fetch one with `fleetfit models pull VARIANT --trainable -o DIR`")
    try:
        from fleetfit.compress.intake.pt2 import load_pt2
        from fleetfit.compress.pruning.masks import hold_zeros
    except ImportError as error:
        raise UnsupportedHere(
            f'training a variant here needs {error.name}; install it with `pip install "fleetfit[compress]"`'
        ) from error
    model = load_pt2(path)
    _name_outputs(model)
    hold_zeros(model.module, model.sparse)
    return model.module


def _name_outputs(model: LayeredModel) -> None:
    """Let the module return a dict where the outputs have names of their own; `fleetfit.export` finds the same names then."""
    names = [tensor.name for tensor in model.outputs]
    if names in (["output"], [f"output_{index}" for index in range(len(names))]):
        return
    result = model.module.graph.output_node()
    values = result.args[0] if isinstance(result.args[0], (tuple, list)) else (result.args[0],)
    graph = model.module.graph
    with graph.inserting_before(result):
        # By a call: a dict in the output's own place is one of a class of PyTorch's, which no archive may name.
        result.args = (graph.call_function(_by_name, (tuple(names), *values)),)
    model.module.recompile()


def _by_name(names: Sequence[str], *values: torch.Tensor) -> dict[str, torch.Tensor]:
    return dict(zip(names, values, strict=True))
