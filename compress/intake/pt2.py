"""A checked `.pt2` archive as a `LayeredModel`."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export.graph_signature import ConstantArgument, InputKind
from torch.utils import _pytree as pytree

from fleetfit.compress.graph.layered import LayeredModel
from fleetfit.compress.intake.archive import CURE, WHAT, CheckedArchive, check_archive
from fleetfit.compress.intake.proof import (
    TOLERANCE,
    check_deterministic,
    largest_difference,
    run_in_parts,
    second_batch,
)
from fleetfit.compress.intake.relayer import relayer
from fleetfit.compress.tasks import Tensor
from fleetfit.core.errors import FleetfitError, InvalidModel

# What an input may be: NumPy's numbers.
_DTYPES = frozenset("bool uint8 int8 int16 int32 int64 float16 float32 float64".split())
Report = Callable[[str, float], None]


def load_pt2(path: Path, *, progress: Report | None = None) -> LayeredModel:
    """Check, load and relayer an archive, and prove the result equal to it.

    Args:
        path: The archive.
        progress: Called with what is being done and the fraction done.

    Raises:
        InvalidModel: It is damaged, dangerous, cannot be read by this torch, or does not compute what it should.
    """
    report = progress or (lambda activity, part: None)
    archive = check_archive(Path(path))
    report("loading the model", 0.2)
    with _quiet():
        program = _load(archive)
        inputs, samples = _inputs(program, archive)
        outputs = _output_names(program, archive)
        try:
            original = _runner(program)
            expected = original(samples)
            again = original(samples)
        except (FleetfitError, MemoryError):
            raise
        except Exception as failure:
            # For example a weight with a name that PyTorch's graphs use themselves (`code`).
            raise InvalidModel(
                f"{WHAT} does not run on its own sample inputs in torch {torch.__version__} "
                f"({type(failure).__name__}: {' '.join(str(failure).split())[:100]}); {CURE}.",
                private=f"{type(failure).__name__}: {failure}",
            ) from failure
        check_deterministic(expected, again, outputs)
        report("rebuilding its layers", 0.5)
        try:
            module = relayer(program, inputs)
        except (FleetfitError, MemoryError):
            raise
        except Exception as failure:
            raise InvalidModel(
                f"{WHAT} could not be taken apart into layers; please report it with the model's code, or push its ONNX file.",
                private=f"{type(failure).__name__}: {failure}",
            ) from failure
        report("comparing the outputs", 0.8)
        relayered = _as_list(module)
        _prove(expected, _run(relayered, samples), "its sample inputs")
        sparse = _sparse(module, archive)
        notes = list(archive.facts.get("notes", []))
        dynamic = _prove_second_batch(original, relayered, samples, _is_dynamic(program), notes)
    return LayeredModel(
        module,
        _describe(inputs, samples, program, dynamic),
        _describe_outputs(outputs, expected, samples[0].shape[0], dynamic, notes),
        dict(zip(inputs, samples, strict=True)),
        dynamic,
        notes,
        sparse,
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """PyTorch's loader warns about its own internals; what matters is raised."""
    logger = logging.getLogger("torch.export")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _resave(content: bytes) -> bytes:
    """A `torch.save` file read without unpickling objects, written anew; what was in it beside tensors is gone."""
    try:
        value = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as failure:
        raise InvalidModel(
            f"{WHAT} holds sample inputs or weights that are not plain tensors, which could run code; {CURE}.",
            private=f"{type(failure).__name__}: {failure}",
        ) from failure
    leaves = pytree.tree_leaves(value)
    if not all(leaf is None or isinstance(leaf, (torch.Tensor, int, float, bool, str)) for leaf in leaves):
        raise InvalidModel(f"{WHAT} holds sample inputs that are not tensors; {CURE}.")
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _load(archive: CheckedArchive) -> torch.export.ExportedProgram:
    try:
        return torch.export.load(archive.repack(_resave))
    except (FleetfitError, MemoryError):
        raise
    except Exception as failure:
        raise InvalidModel(
            f"{WHAT} was exported by torch {archive.torch_version} and torch {torch.__version__} cannot read it here; "
            f'{CURE}, after `python -m pip install "torch=={torch.__version__.split("+")[0]}"` if that fails too.',
            private=f"{type(failure).__name__}: {failure}",
        ) from failure


def _user_inputs(program: torch.export.ExportedProgram) -> list[Any]:
    return [spec.arg for spec in program.graph_signature.input_specs if spec.kind is InputKind.USER_INPUT]


def _inputs(program: torch.export.ExportedProgram, archive: CheckedArchive) -> tuple[list[str], list[torch.Tensor]]:
    """Names and samples of the inputs that are tensors."""
    arguments = _user_inputs(program)
    if program.example_inputs is None:
        raise InvalidModel(f"{WHAT} carries no sample inputs, without which nothing can be proven about it; {CURE}.")
    leaves = pytree.tree_leaves(program.example_inputs)
    if len(leaves) != len(arguments):
        raise InvalidModel(f"{WHAT} carries sample inputs that are not those of its forward; {CURE}.")
    names, samples = [], []
    for argument, leaf in zip(arguments, leaves, strict=True):
        if isinstance(argument, ConstantArgument):
            continue
        if not isinstance(leaf, torch.Tensor) or leaf.dim() == 0 or leaf.shape[0] == 0:
            raise InvalidModel(
                f"The model's input {argument.name} is not a tensor with a batch; let it take tensors, batch first."
            )
        if _dtype(leaf) not in _DTYPES:
            raise InvalidModel(
                f"The model's input {argument.name} is {_dtype(leaf)}, which data files cannot hold; let it take float32 and "
                "convert inside forward."
            )
        names.append(str(argument.name))
        samples.append(leaf.detach().clone())
    if not samples:
        raise InvalidModel("The model takes no input; export one whose forward takes a tensor.")
    counts = {sample.shape[0] for sample in samples}
    if len(counts) > 1:
        raise InvalidModel(
            "The model's sample inputs differ in their first axis; the first axis of each must be the batch."
        )
    stated = archive.facts.get("inputs") or []
    if len(stated) == len(names) and len(set(stated)) == len(names):
        names = list(stated)
    return names, samples


def _output_names(program: torch.export.ExportedProgram, archive: CheckedArchive) -> list[str]:
    count = len(program.graph_signature.user_outputs)
    stated = archive.facts.get("outputs") or []
    if len(stated) == count and len(set(stated)) == count:
        return list(stated)
    spec = program.call_spec.out_spec
    if spec is not None and spec.type is dict and spec.num_leaves == count == len(spec.context):
        return [str(key) for key in spec.context]
    return ["output"] if count == 1 else [f"output_{index}" for index in range(count)]


def _sparse(module: torch.nn.Module, archive: CheckedArchive) -> set[str]:
    """The weights whose zeros are to stay; a name that relayering does not know would let them fill silently."""
    stated = set(archive.facts.get("sparse", []))
    unknown = sorted(stated - {name for name, _ in module.named_parameters(remove_duplicate=False)})
    if unknown:
        raise InvalidModel(
            f"{WHAT} says that the zeros of {unknown[0][:100]!r} are to stay and has no such weight; {CURE}."
        )
    return stated


def _runner(program: torch.export.ExportedProgram) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    """The program as it came, called with its tensors in order."""
    # Guards are Python text in the archive; they were dropped there, and are not asked for here.
    module = program.module(check_guards=False)
    example = program.example_inputs
    leaves, structure = pytree.tree_flatten(example)
    constant = [isinstance(argument, ConstantArgument) for argument in _user_inputs(program)]

    def run(arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        given = iter(arrays)
        # Cloned: the exported graph may write into its inputs.
        filled = [leaf if fixed else next(given).clone() for leaf, fixed in zip(leaves, constant, strict=True)]
        arguments, keywords = pytree.tree_unflatten(filled, structure)
        return [leaf for leaf in pytree.tree_leaves(module(*arguments, **keywords)) if leaf is not None]

    return run


def _as_list(module: torch.nn.Module) -> Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]:
    def run(arrays: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        result = module(*(array.clone() for array in arrays))
        return [result] if isinstance(result, torch.Tensor) else list(result)

    return run


def _run(
    run: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]], arrays: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    try:
        return run(arrays)
    except Exception as failure:
        raise InvalidModel(
            f"{WHAT} was taken apart into layers that do not run; please report it with the model's code, or push its ONNX file.",
            private=f"{type(failure).__name__}: {failure}",
        ) from failure


def _prove(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor], where: str) -> None:
    found = largest_difference(expected, actual)
    if found > TOLERANCE:
        raise InvalidModel(
            f"The model taken apart into layers differs from the exported one by {found:.1e} on {where}; please report it with "
            "the model's code, or push its ONNX file instead."
        )


def _is_dynamic(program: torch.export.ExportedProgram) -> bool:
    """Whether the first axis of every input may vary."""
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [values[a.name] for a in _user_inputs(program) if not isinstance(a, ConstantArgument)]
    return all(isinstance(value, torch.Tensor) and not isinstance(value.shape[0], int) for value in tensors)


def _prove_second_batch(
    original: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    relayered: Callable[[Sequence[torch.Tensor]], list[torch.Tensor]],
    samples: Sequence[torch.Tensor],
    dynamic: bool,
    notes: list[str],
) -> bool:
    """Whether the relayered model takes any batch size, proven on a second one."""
    batch = samples[0].shape[0]
    if dynamic:
        arrays = second_batch(samples, batch + 1)
        try:
            expected = original(arrays)
        except Exception:  # noqa: BLE001 - whatever the graph raises for another batch size
            notes.append(f"The model was exported for any batch size but runs only for batches of {batch}.")
            dynamic = False
        else:
            _prove(expected, _run(relayered, arrays), f"a batch of {batch + 1}")
            return True
    # Exported for one batch size: samples do not meet each other, so that many batches in one must give the same.
    arrays = second_batch(samples, 2 * batch)
    expected = run_in_parts(original, arrays, batch)
    try:
        equal = largest_difference(expected, relayered(arrays)) <= TOLERANCE
    except Exception:  # noqa: BLE001 - whatever a constant size raises for another batch
        equal = False
    if equal:
        notes.append(
            f"The model was exported for batches of {batch}; its layers take any batch, proven on {2 * batch}."
        )
        return True
    notes.append(
        f"The model takes only batches of {batch}: it is measured and trained with that batch size; use x.shape[0] in place of "
        "a fixed batch size to free it."
    )
    return False


def _dtype(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _describe(
    names: Sequence[str], samples: Sequence[torch.Tensor], program: torch.export.ExportedProgram, dynamic: bool
) -> list[Tensor]:
    values = {node.name: node.meta.get("val") for node in program.graph.nodes if node.op == "placeholder"}
    tensors = [values[a.name] for a in _user_inputs(program) if not isinstance(a, ConstantArgument)]
    described = []
    for name, sample, value in zip(names, samples, tensors, strict=True):
        shape = [size if isinstance(size, int) else -1 for size in value.shape]
        described.append(
            Tensor(name=name, dtype=_dtype(sample), shape=[-1 if dynamic else sample.shape[0], *shape[1:]])
        )
    return described


def _describe_outputs(
    names: Sequence[str], values: Sequence[torch.Tensor], batch: int, dynamic: bool, notes: list[str]
) -> list[Tensor]:
    described = []
    for name, value in zip(names, values, strict=True):
        shape = list(value.shape)
        if not shape or shape[0] != batch:
            if name == names[0]:
                raise InvalidModel(
                    f"The model's output {name} has the shape {shape} for {batch} samples; the first axis of an output must be "
                    "the batch, so return one row for each sample."
                )
            notes.append(f"The output {name} has no batch axis and is left out of comparisons per sample.")
        elif dynamic:
            shape[0] = -1
        described.append(Tensor(name=name, dtype=_dtype(value), shape=shape))
    return described
