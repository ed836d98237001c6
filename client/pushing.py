"""What is pushed: a model's file, or a factory that is exported here first; an `.npz`, or a folder of `.npy` files."""

from __future__ import annotations

import contextlib
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from fleetfit.core.errors import InvalidData, InvalidInput, InvalidModel

FORMATS: Final = {".pt2": "pt2", ".onnx": "onnx"}
PART_NAMES: Final[tuple[Literal["pre", "post"], ...]] = ("pre", "post")
_Told = Callable[[str, float | None, float | None], None]


@dataclass(frozen=True)
class Source:
    """A model's file, the name that it suggests, and its format (`pt2` or `onnx`)."""

    path: Path
    name: str
    format: str


def is_factory(text: str) -> bool:
    """Whether `text` names a factory rather than a file."""
    module, _, attribute = text.partition(":")
    return bool(attribute) and "/" not in text and Path(text).suffix not in FORMATS and bool(module)


@contextlib.contextmanager
def open_source(text: str, samples: Path | None, told: _Told) -> Iterator[Source]:
    """The model's file; a factory's is made in a temporary folder."""
    if is_factory(text) and not Path(text).exists():
        with tempfile.TemporaryDirectory(prefix="fleetfit-") as folder:
            yield export_factory(text, samples, Path(folder), told)
    else:
        yield model_file(Path(text))


def model_file(path: Path) -> Source:
    """A model's file. Raises InvalidModel where it is none."""
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InvalidModel(
            f"'{path}' is no model; give a .pt2 file (fleetfit.export makes one), a .onnx file, or package.module:factory",
            field="model",
        )
    _readable(path, "model")
    return Source(path, path.stem, form)


def part_file(path: Path, name: str) -> Path:
    """The ONNX file of a part that is never compressed, `pre` or `post`. Raises InvalidModel where it is none."""
    if path.suffix.lower() != ".onnx":
        raise InvalidModel(
            f"'{path}' cannot be the {name} part, which is an .onnx file; make one with torch.onnx.export(module, args, "
            f"'{name}.onnx', dynamo=True, external_data=False, input_names=[...], output_names=[...])",
            field=name,
        )
    _readable(path, name)
    return path


def export_factory(spec: str, samples: Path | None, folder: Path, told: _Told) -> Source:
    """Call a factory of the user's and export what it returns, in this process and environment."""
    # Imports torch.
    from fleetfit.client.export import export, load_factory

    told(f"exporting {spec}", None, None)
    model, inputs = load_factory(spec)
    if samples is not None:
        inputs = read_samples(samples)
    if inputs is None:
        raise InvalidModel(
            f"'{spec}' returns a model without sample inputs; let it return (model, sample_inputs), or give --samples an .npz "
            "with one array for each input",
            field="model",
        )
    name = spec.partition(":")[0].rpartition(".")[2]
    return Source(export(model, inputs, folder / f"{name}.pt2", name=name), name, "pt2")


def read_samples(path: Path) -> dict[str, Any]:
    """The first two rows of each array of an `.npz`, as tensors by their names."""
    import numpy as np
    import torch

    _readable(path, "samples")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            named = {name: arrays[name][:2] for name in arrays.files if name not in ("targets", "groups")}
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise InvalidData(
            f"{path} is not an .npz of plain arrays ({error}); make it with numpy.savez", field="samples"
        ) from error
    return {name: torch.from_numpy(np.ascontiguousarray(rows)) for name, rows in named.items()}


@contextlib.contextmanager
def check_npz(path: Path) -> Iterator[Path]:
    """The `.npz` to send; made from a folder's `.npy` files where `path` is a folder. The server checks what is in it."""
    if path.is_dir():
        files = sorted(path.glob("*.npy"))
        if not files:
            raise InvalidData(
                f"the folder {path} holds no .npy files; save each input and 'targets' there, or give an .npz",
                field="data",
            )
        with tempfile.TemporaryDirectory(prefix="fleetfit-") as folder:
            packed = Path(folder) / f"{path.resolve().name}.npz"
            with zipfile.ZipFile(packed, "w", zipfile.ZIP_STORED) as archive:
                for file in files:
                    # A fixed date: the same arrays give the same file, so they are sent and checked once.
                    entry = zipfile.ZipInfo(file.name, date_time=(1980, 1, 1, 0, 0, 0))
                    with archive.open(entry, "w", force_zip64=True) as target, file.open("rb") as content:
                        while chunk := content.read(1 << 20):
                            target.write(chunk)
            yield packed
        return
    _readable(path, "data")
    if not zipfile.is_zipfile(path):
        raise InvalidData(
            f"{path} is not an .npz; save the arrays with numpy.savez, named as the model's inputs, and 'targets'",
            field="data",
        )
    yield path


def _readable(path: Path, field: str) -> None:
    if not path.exists():
        raise InvalidInput(f"there is no file '{path}'; check the path", field=field)
    if not path.is_file():
        raise InvalidInput(f"'{path}' is not a file; check the path", field=field)
    if path.stat().st_size == 0:
        raise InvalidInput(f"'{path}' is empty; write it again", field=field)
    with path.open("rb") as file:  # raises a PermissionError that says which file
        file.read(1)
