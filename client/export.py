"""`fleetfit.export`: a PyTorch model as an archive that the server reads, made in the user's own environment.

Needs torch 2.6 or newer, which fleetfit never installs by itself; it is imported when a function is called.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import keyword
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fleetfit.client.export_failure import explain_failure, explain_operator
from fleetfit.core.errors import FleetfitError, InvalidModel, NotFound, UnsupportedHere

if TYPE_CHECKING:
    import torch
    from torch import nn

    Samples = torch.Tensor | Sequence[torch.Tensor] | Mapping[str, torch.Tensor]

__all__ = ["explain_failure", "export", "load_factory"]

_OLDEST_TORCH = (2, 6)
FACTS_FILE = "fleetfit.json"


def _torch() -> Any:
    try:
        import torch
    except ImportError as missing:
        raise UnsupportedHere(
            "Exporting a model needs PyTorch 2.6 or newer in this environment; install it with `python -m pip install torch`."
        ) from missing
    version = tuple(int(part) for part in re.findall(r"\d+", torch.__version__)[:2])
    if version < _OLDEST_TORCH:
        raise UnsupportedHere(
            f"Exporting a model needs PyTorch 2.6 or newer and this environment has {torch.__version__}; update it with "
            '`python -m pip install "torch>=2.6"`.'
        )
    return torch


def export(
    model: nn.Module,
    sample_inputs: Samples,
    path: str | Path,
    *,
    dynamic_batch: bool = True,
    name: str | None = None,
) -> Path:
    """Write `model` to `path` as a `.pt2` archive.

    The model is exported in evaluation mode and on the CPU, and left as it was. The batch may vary afterwards where the model
    allows it; otherwise the archive holds the samples' batch size, says so in a note, and the server tries to free it.

    Args:
        model: The trained model.
        sample_inputs: One tensor, a tuple in the order of `forward`'s parameters, or a dict by their names. The first axis of
            each is the batch.
        path: The file to write, usually ending in `.pt2`.
        dynamic_batch: False keeps the samples' batch size on purpose.
        name: A name to keep inside the archive.

    Raises:
        InvalidModel: The model cannot be exported; the sentence names the line and the usual cure.
        UnsupportedHere: PyTorch is missing or too old.
    """
    torch = _torch()
    if not isinstance(model, torch.nn.Module):
        raise InvalidModel(f"export takes a torch.nn.Module, not a {type(model).__name__}; give it the model itself.")
    # Copies: a slice of a whole dataset would take the dataset into the archive.
    model, sparse = _unheld(model)
    samples = {key: value.detach().clone() for key, value in _bind_samples(torch, model, sample_inputs).items()}
    notes: list[str] = []
    target = Path(path)
    with _ready(torch, model):
        outputs, program, dynamic = _export_either_way(torch, model, samples, dynamic_batch, notes)
    facts = {
        "inputs": list(samples),
        "outputs": outputs,
        "dynamic_batch": dynamic,
        "notes": notes,
        "sparse": sparse,
        "torch": str(torch.__version__),
        "name": name or type(model).__name__,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(target.name + ".partial")
    try:
        with partial.open("wb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.export.save(program, file, extra_files={FACTS_FILE: json.dumps(facts)})
        partial.replace(target)
    except OSError as failure:
        raise InvalidModel(f"The archive could not be written to {target}: {failure.strerror or failure}.") from failure
    finally:
        partial.unlink(missing_ok=True)
    return target


def _unheld(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model with ordinary weights, and the names of those whose zeros `fleetfit.trainable` holds."""
    masks = sys.modules.get("fleetfit.compress.pruning.masks")
    # Not imported: no model holds zeros before it is.
    return masks.without_holds(model) if masks is not None else (model, [])


@contextlib.contextmanager
def _ready(torch: Any, model: nn.Module) -> Iterator[None]:
    """The state in which a model exports best; all of it is put back afterwards.

    Evaluation mode; without gradients, so that a `torch.no_grad()` inside forward changes nothing and leaves no nested graph;
    without attention's fused fast path, which cannot be taken apart; outputs of a class that acts as a dict (those of
    transformers) as plain dicts, since an archive may name no classes; and in silence, since PyTorch prints whole graphs.
    """
    modes = {module: module.training for module in model.modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    model.eval()
    torch.backends.mha.set_fastpath_enabled(False)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    plain = model.register_forward_hook(lambda module, given, result: _plain_dict(result))
    try:
        with torch.no_grad(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        plain.remove()
        logging.disable(disabled)
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for module, mode in modes.items():
            module.training = mode


def _plain_dict(result: Any) -> Any:
    return dict(result.items()) if isinstance(result, Mapping) and type(result) is not dict else result


def _bind_samples(torch: Any, model: nn.Module, given: Any) -> dict[str, Any]:
    """The samples by the names of `forward`'s parameters, in their order."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    named = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    if isinstance(given, torch.Tensor):
        given = (given,)
    if isinstance(given, Mapping):
        unknown = [key for key in given if key not in named]
        if unknown:
            raise InvalidModel(
                f"forward of {type(model).__name__} takes {', '.join(named) or 'no named inputs'} and not {unknown[0]!r}; "
                "name the sample inputs as forward's parameters."
            )
        samples = {key: given[key] for key in named if key in given}
    elif isinstance(given, (tuple, list)):
        extra = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        names = [*named, *(f"input_{index}" for index in range(len(named), len(given)))] if extra else named
        if len(given) > len(names):
            raise InvalidModel(
                f"forward of {type(model).__name__} takes {len(names)} inputs and {len(given)} samples came."
            )
        samples = dict(zip(names, given, strict=False))
    else:
        raise InvalidModel(
            f"The sample inputs are a {type(given).__name__}; give a tensor, a tuple of them, or a dict."
        )
    required = [p.name for p in parameters if p.default is p.empty and p.name in named and p.name not in samples]
    if required or not samples:
        raise InvalidModel(
            f"No sample input was given for {required[0] if required else 'any input'} of {type(model).__name__}; give one "
            "tensor for each of forward's parameters."
        )
    for key, value in samples.items():
        if not isinstance(value, torch.Tensor):
            raise InvalidModel(f"The sample input {key} is a {type(value).__name__}; inputs must be tensors.")
        if value.device.type != "cpu":
            raise InvalidModel(f"The sample input {key} is on {value.device}; move it and the model with .cpu() first.")
        if value.dim() == 0 or value.shape[0] == 0:
            raise InvalidModel(f"The sample input {key} has no batch; its first axis must hold at least one sample.")
        if key in ("targets", "groups"):
            raise InvalidModel(
                f"The input {key!r} has the name that {key} of a data file have; rename that parameter of forward."
            )
        if keyword.iskeyword(key):
            raise InvalidModel(f"The input {key!r} is a word of Python's; rename that parameter of forward.")
    if len({value.shape[0] for value in samples.values()}) > 1:
        counts = ", ".join(f"{key}: {value.shape[0]}" for key, value in samples.items())
        raise InvalidModel(
            f"The sample inputs differ in their first axis, the batch ({counts}); give as many samples of each."
        )
    own = {name.split(".")[0] for name, _ in (*model.named_parameters(), *model.named_buffers())}
    clash = next((name for name in sorted(own) if hasattr(torch.fx.GraphModule, name)), None)
    if clash is not None:
        raise InvalidModel(
            f"{type(model).__name__} has an attribute {clash!r}, a name that PyTorch's graphs use; rename it."
        )
    elsewhere = next((n for n, p in model.named_parameters() if p.device.type != "cpu"), None)
    if elsewhere is not None:
        raise InvalidModel(f"The weight {elsewhere} is not on the CPU; call model.cpu() before the export.")
    return samples


def _export_either_way(
    torch: Any, model: nn.Module, samples: dict[str, Any], dynamic_batch: bool, notes: list[str]
) -> tuple[list[str], Any, bool]:
    """Names of the outputs, the program, and whether its batch may vary."""
    if dynamic_batch:
        try:
            # A batch of one would be taken for a constant.
            doubled = {k: torch.cat([v, v]) if v.shape[0] == 1 else v for k, v in samples.items()}
            return *_export_once(torch, model, doubled, True), True
        except FleetfitError:
            raise
        except Exception as failure:  # noqa: BLE001 - any failure of the tracer: tried again with a fixed batch
            reason = explain_failure(failure)
    try:
        names, program = _export_once(torch, model, samples, False)
    except FleetfitError:
        raise
    except Exception as failure:
        raise InvalidModel(explain_failure(failure), private=f"{type(failure).__name__}: {failure}") from failure
    batch = next(iter(samples.values())).shape[0]
    if dynamic_batch:
        notes.append(f"The model could be exported only for batches of {batch}. {reason}")
    return names, program, False


def _export_once(torch: Any, model: nn.Module, samples: dict[str, Any], dynamic: bool) -> tuple[list[str], Any]:
    signature = inspect.signature(model.forward)
    kinds = {p.name: p.kind for p in signature.parameters.values()}
    variadic = any(kind is inspect.Parameter.VAR_POSITIONAL for kind in kinds.values())
    batch = torch.export.Dim("batch")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with torch.no_grad():
            names = output_names(
                torch, model(*samples.values()) if variadic else model(**_only(samples, kinds, signature))
            )
        if variadic or any(kinds[name] is inspect.Parameter.POSITIONAL_ONLY for name in samples):
            arguments: tuple[Any, ...] = tuple(samples.values())
            keywords: dict[str, Any] = {}
        else:
            arguments, keywords = (), dict(samples)
        shapes: Any = None
        if dynamic and variadic:
            fixed = [n for n in samples if n in kinds]
            rest = tuple({0: batch} for n in samples if n not in kinds)
            star = next(n for n, kind in kinds.items() if kind is inspect.Parameter.VAR_POSITIONAL)
            shapes = {**{name: {0: batch} for name in fixed}, star: rest}
        elif dynamic:
            shapes = {name: {0: batch} for name in samples}
        program = torch.export.export(model, arguments, keywords, dynamic_shapes=shapes, strict=False)
    _refuse_foreign_operators(torch, program)
    return names, program


def _refuse_foreign_operators(torch: Any, program: Any) -> None:
    """The server takes only PyTorch's own operators; say so here, where the line is known."""
    for node in program.graph.nodes:
        if node.op != "call_function":
            continue
        nested = isinstance(node.target, torch._ops.HigherOrderOperator)
        foreign = isinstance(node.target, torch._ops.OpOverload) and node.target.namespace != "aten"
        if nested or foreign:
            raise InvalidModel(explain_operator(str(node.target), _stack_of(program, node), nested=nested))


def _stack_of(program: Any, node: Any) -> str:
    """The tracer's stack for a call; for one with a graph of its own, that of the graph's first call."""
    nested = (
        getattr(program.graph_module, str(a.target), None) for a in node.args if getattr(a, "op", "") == "get_attr"
    )
    inner = (n for module in nested if module is not None for n in module.graph.nodes)
    return next((n.meta["stack_trace"] for n in (node, *inner) if n.meta.get("stack_trace")), "")


def _only(samples: dict[str, Any], kinds: Mapping[str, Any], signature: inspect.Signature) -> dict[str, Any]:
    if any(kinds[name] is inspect.Parameter.POSITIONAL_ONLY for name in samples):
        raise InvalidModel("forward has positional-only parameters; remove the slash from its signature.")
    return samples


def output_names(torch: Any, result: Any) -> list[str]:
    """Names for what `forward` returned: `output`, or `output_0`, ... for a tuple, or a dict's keys."""
    if isinstance(result, torch.Tensor):
        return ["output"]
    if isinstance(result, Mapping):
        if not all(isinstance(key, str) for key in result):
            raise InvalidModel(
                "forward returns a dict whose keys are not text; use text keys, they become the outputs' names."
            )
        nested = next((key for key, value in result.items() if not isinstance(value, torch.Tensor)), None)
        if nested is not None:
            raise InvalidModel(f"forward returns {nested!r} as {type(result[nested]).__name__}; return only tensors.")
        return [re.sub(r"\W", "_", key) for key in result]
    if isinstance(result, (tuple, list)):
        flat, _ = torch.utils._pytree.tree_flatten(result)
        if flat and all(isinstance(value, torch.Tensor) for value in flat):
            return ["output"] if len(flat) == 1 else [f"output_{index}" for index in range(len(flat))]
    raise InvalidModel(
        f"forward returns a {type(result).__name__}; let it return a tensor, a tuple of tensors or a dict of tensors."
    )


def load_factory(spec: str) -> tuple[nn.Module, Samples | None]:
    """Call `package.module:factory`, which returns the model, or the model and its sample inputs.

    Raises:
        NotFound: There is no such module or function.
        InvalidModel: It fails, or returns something else.
    """
    torch = _torch()
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute or not all(part.isidentifier() for part in module_name.split(".")):
        raise InvalidModel(f"{spec!r} does not name a factory; write it as package.module:factory.")
    folder = str(Path.cwd())
    if folder not in sys.path:
        # As `python -m` does: the user's own package lies where the command is given.
        sys.path.insert(0, folder)
    try:
        factory: Any = import_module(module_name)
        for part in attribute.split("."):
            factory = getattr(factory, part)
    except ModuleNotFoundError as missing:
        raise NotFound(
            f"There is no module {missing.name!r} to import for {spec!r}; start the command where it can be imported."
        ) from missing
    except AttributeError as missing:
        raise NotFound(
            f"The module {module_name!r} has no {attribute!r}; name a function in it that returns the model."
        ) from missing
    except Exception as failure:
        raise InvalidModel(
            f"Importing {module_name!r} failed with {type(failure).__name__}: {_short(failure)}."
        ) from failure
    if isinstance(factory, torch.nn.Module):
        return factory, None
    if not callable(factory):
        raise InvalidModel(f"{spec!r} is a {type(factory).__name__}; name a function that returns the model.")
    try:
        made = factory()
    except FleetfitError:
        raise
    except Exception as failure:
        raise InvalidModel(f"{spec!r} failed with {type(failure).__name__}: {_short(failure)}.") from failure
    if isinstance(made, torch.nn.Module):
        return made, None
    if isinstance(made, (tuple, list)) and len(made) == 2 and isinstance(made[0], torch.nn.Module):
        return made[0], made[1]
    raise InvalidModel(
        f"{spec!r} returned a {type(made).__name__}; let it return the model, or (model, sample_inputs)."
    )


def _short(failure: BaseException) -> str:
    return " ".join(str(failure).split())[:200].rstrip(".")
