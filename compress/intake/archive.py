"""The check of a `torch.export` archive before PyTorch sees it. Needs only the standard library.

`torch.export.load` unpickles what the archive says is pickled, evaluates symbolic expressions, and looks operators up by
name. So the archive is read here first, with every part that could do more than hold numbers refused, and `repack` writes
what was checked into a new archive: PyTorch's reader never meets the uploaded zip itself, on whose structure two readers
could disagree.

Three layouts exist: that of torch 2.9 and newer (`models/model.json`, raw weights), that of 2.8 (the same, with weights and
constants in a pickle each), and that of 2.6 and 2.7 (`serialized_exported_program.json`, three pickles). Pickles are read with
`weights_only`.
"""

from __future__ import annotations

import io
import json
import keyword
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from fleetfit.compress.intake.graphcheck import check_program
from fleetfit.compress.intake.payloads import check_payloads
from fleetfit.compress.intake.zipcheck import open_checked, read_entry
from fleetfit.core.errors import InvalidModel

WHAT = "The model file"
CURE = "make it again with fleetfit.export(model, sample_inputs, 'model.pt2') in the environment that runs the model"
FACTS_FILE = "fleetfit.json"

_ARCHIVE_VERSION = "0"
_SCHEMA_MAJOR = 8
_OLDEST_TORCH = (2, 6)
_JSON_LIMIT = 256 << 20
_SAMPLES_LIMIT = 1 << 30
_SMALL_LIMIT = 1 << 20
_MOST_SPARSE = 10_000
_LEGACY_PROGRAM = "serialized_exported_program.json"
_LEGACY_PICKLES = ("serialized_state_dict.pt", "serialized_constants.pt", "serialized_example_inputs.pt")
_SAMPLES = "data/sample_inputs/model.pt"
_PICKLED_WEIGHTS = ("data/weights/model.pt", "data/constants/model.pt")
_WEIGHTS, _CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
_MODERN = re.compile(
    r"^(models/model\.json|archive_format|archive_version|byteorder|\.data/(version|serialization_id)|version"
    r"|\.format_version|\.storage_alignment|data/(sample_inputs|weights|constants)/model\.pt"
    r"|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|extra/[A-Za-z0-9_.-]+)$"
)


@dataclass(frozen=True)
class CheckedArchive:
    """An archive that passed. Entries are named without the archive's own folder."""

    path: Path
    root: str
    legacy: bool
    torch_version: str
    program: dict[str, Any] = field(repr=False)
    facts: dict[str, Any]
    """What fleetfit noted: names of inputs, outputs and weights whose zeros stay, the torch version; empty for others'."""
    pickles: tuple[str, ...]
    """Entries that `torch.save` wrote."""
    payloads: tuple[str, ...] = ()
    """Entries of plain numbers."""
    lists: Mapping[str, dict[str, Any]] = field(default_factory=dict, repr=False)
    """What lies in the payloads, by the entries that say so."""

    def read(self, name: str) -> bytes:
        """The content of one entry."""
        with open_checked(self.path, what=WHAT, cure=CURE, error=InvalidModel) as archive:
            return read_entry(archive, self.root + name, limit=_SAMPLES_LIMIT, what=WHAT, error=InvalidModel)

    def repack(self, resave: Callable[[bytes], bytes]) -> io.BytesIO:
        """A new archive with only what was checked.

        Args:
            resave: Takes a `torch.save` file from the archive (sample inputs; in the older layouts weights too), reads it with
                `weights_only`, and returns it written anew.
        """
        buffer = io.BytesIO()
        with (
            open_checked(self.path, what=WHAT, cure=CURE, error=InvalidModel) as source,
            zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as target,
        ):

            def original(name: str) -> bytes:
                return read_entry(source, self.root + name, limit=4 << 30, what=WHAT, error=InvalidModel)

            program = json.dumps(self.program)
            root = "" if self.legacy else "m/"
            if self.legacy:
                target.writestr("version", original("version"))
                target.writestr(_LEGACY_PROGRAM, program)
            else:
                target.writestr("m/archive_format", "pt2")
                target.writestr("m/archive_version", _ARCHIVE_VERSION)
                target.writestr("m/models/model.json", program)
                # PyTorch's reader asks for its own format's version.
                target.writestr("m/version", "3\n")
                target.writestr("m/byteorder", "little")
            for name, content in self.lists.items():
                target.writestr(root + name, json.dumps(content))
            for name in self.pickles:
                target.writestr(root + name, resave(original(name)))
            for name in self.payloads:
                target.writestr(root + name, original(name))
        buffer.seek(0)
        return buffer


def check_archive(path: Path) -> CheckedArchive:
    """Check a `.pt2` without PyTorch.

    Raises:
        InvalidModel: It is damaged, too large, from a version that cannot be read, or holds anything but a graph of known
            operators and plain numbers.
    """
    with open_checked(path, what=WHAT, cure=CURE, error=InvalidModel) as archive:
        names = archive.namelist()
        if _LEGACY_PROGRAM in names:
            return _check_legacy(path, archive)
        return _check_modern(path, archive)


def _refuse(problem: str) -> NoReturn:
    raise InvalidModel(f"{WHAT} {problem}; {CURE}.")


def _refuse_newer(problem: str) -> NoReturn:
    # Exporting it once more in the same environment would give the same.
    raise InvalidModel(
        f'{WHAT} {problem}, which is newer than this fleetfit reads; run `pip install --upgrade "fleetfit[server]"` where the '
        "server is, or export it again with an older torch."
    )


def _check_modern(path: Path, archive: zipfile.ZipFile) -> CheckedArchive:
    names = archive.namelist()
    root = names[0].split("/")[0] + "/" if names else ""
    inner = [name.removeprefix(root) for name in names]
    if not names or any(not name.startswith(root) for name in names) or "models/model.json" not in inner:
        _refuse("is a zip archive but not one made by torch.export.save")
    for name in inner:
        if not _MODERN.match(name):
            _refuse(f"holds {name[:80]!r}, which has no place in an exported model (pickled or compiled code, perhaps)")

    def text(name: str, limit: int = _SMALL_LIMIT) -> str:
        if name not in inner:
            _refuse(f"lacks its entry {name!r}")
        try:
            return read_entry(archive, root + name, limit=limit, what=WHAT, error=InvalidModel).decode()
        except UnicodeDecodeError:
            _refuse(f"has an entry {name!r} that is not text")

    version = text("archive_version").strip()
    if text("archive_format") == "pt2" and version.isdecimal() and int(version) > int(_ARCHIVE_VERSION):
        _refuse_newer(f"has the archive version {version[:20]!r}")
    if text("archive_format") != "pt2" or version != _ARCHIVE_VERSION:
        _refuse(f"has the archive version {version[:20]!r}, which this fleetfit cannot read")
    if "byteorder" in inner and text("byteorder") != "little":
        _refuse("was written on a big-endian machine")
    if _SAMPLES not in inner:
        _refuse("carries no sample inputs, without which nothing can be proven about it")
    program = _load_json(text("models/model.json", _JSON_LIMIT), "models/model.json")
    torch_version = check_versions(program)
    check_program(program)
    pickles: tuple[str, ...] = (_SAMPLES,)
    lists: dict[str, dict[str, Any]] = {}
    if any(name in inner for name in _PICKLED_WEIGHTS):
        # PyTorch would take these and pass over the lists, so nothing else may stand beside them.
        if {name for name in inner if re.match(r"^data/(weights|constants)/", name)} != set(_PICKLED_WEIGHTS):
            _refuse("keeps weights and constants partly in a pickle and partly as numbers")
        pickles += _PICKLED_WEIGHTS
    else:
        sizes = {name.removeprefix(root): info.file_size for name, info in zip(names, archive.infolist(), strict=True)}
        lists = {
            _WEIGHTS: _load_json(text(_WEIGHTS, _JSON_LIMIT), "the list of weights"),
            _CONSTANTS: _load_json(text(_CONSTANTS, _JSON_LIMIT), "the list of constants"),
        }
        for name, content in lists.items():
            check_payloads(content, f"{name.rpartition('/')[0]}/", sizes)
    facts = _facts(text(f"extra/{FACTS_FILE}")) if f"extra/{FACTS_FILE}" in inner else {}
    payloads = tuple(name for name in inner if re.match(r"^data/(weights/weight|constants/tensor)_\d+$", name))
    return CheckedArchive(path, root, False, torch_version, program, facts, pickles, payloads, lists)


def _check_legacy(path: Path, archive: zipfile.ZipFile) -> CheckedArchive:
    allowed = re.compile(r"^(version|serialized_\w+\.(json|pt)|extra_files/[A-Za-z0-9_.-]+)$")
    names = archive.namelist()
    for name in names:
        if not allowed.match(name):
            _refuse(f"holds {name[:80]!r}, which has no place in an exported model")
    for name in ("version", *_LEGACY_PICKLES):
        if name not in names:
            _refuse(f"lacks its entry {name!r}")
    program_bytes = read_entry(archive, _LEGACY_PROGRAM, limit=_JSON_LIMIT, what=WHAT, error=InvalidModel)
    program = _load_json(program_bytes.decode(errors="replace"), _LEGACY_PROGRAM)
    torch_version = check_versions(program)
    version = read_entry(archive, "version", limit=100, what=WHAT, error=InvalidModel).decode(errors="replace")
    if version.split(".")[0] != str(_SCHEMA_MAJOR):
        _refuse(f"has the archive version {version[:20]!r}, which this fleetfit cannot read")
    check_program(program)
    extra = f"extra_files/{FACTS_FILE}"
    facts: dict[str, Any] = {}
    if extra in names:
        content = read_entry(archive, extra, limit=_SMALL_LIMIT, what=WHAT, error=InvalidModel)
        facts = _facts(content.decode(errors="replace"))
    return CheckedArchive(path, "", True, torch_version, program, facts, _LEGACY_PICKLES)


def check_versions(program: dict[str, Any]) -> str:
    """The torch version that wrote `program`, refused when no torch here could read it."""
    written_by = program.get("torch_version")
    schema = program.get("schema_version")
    match = (
        re.match(r"^(\d{1,3})\.(\d{1,3})[A-Za-z0-9.+_-]{0,60}$", written_by) if isinstance(written_by, str) else None
    )
    major = schema.get("major") if isinstance(schema, dict) else None
    if match is None or (int(match[1]), int(match[2])) < _OLDEST_TORCH or major != _SCHEMA_MAJOR:
        shown = written_by[:40] if match is not None and isinstance(written_by, str) else "an unknown version"
        if isinstance(major, int) and major > _SCHEMA_MAJOR:
            _refuse_newer(f"was exported by torch {shown} in format {major!r:.20}")
        raise InvalidModel(
            f"{WHAT} was exported by torch {shown} in format {major!r:.20}, which this fleetfit cannot read; export it "
            f'again after `python -m pip install "torch>=2.8"`: python -c "import fleetfit; '
            "fleetfit.export(model, sample_inputs, 'model.pt2')\"."
        )
    assert isinstance(written_by, str)  # noqa: S101 - matched above; tells the type checker
    return written_by


def _load_json(text: str, name: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        _refuse(f"has the unreadable part {name!r}")
    if not isinstance(value, dict):
        _refuse(f"has the unreadable part {name!r}")
    return value


def _facts(text: str) -> dict[str, Any]:
    facts = _load_json(text, FACTS_FILE)
    kept: dict[str, Any] = {}
    for key in ("inputs", "outputs", "notes", "sparse"):
        value = facts.get(key, [])
        if not isinstance(value, list) or not all(isinstance(part, str) and len(part) < 2000 for part in value):
            _refuse(f"has an unreadable {FACTS_FILE}")
        kept[key] = value
    # Inputs' names become Python source when PyTorch compiles the relayered graph.
    for name in kept["inputs"]:
        if not name.isidentifier() or not name.isascii() or keyword.iskeyword(name) or len(name) > 100:
            _refuse(f"names an input {name[:60]!r}, which is not an identifier")
    for name in kept["outputs"]:
        if not re.fullmatch(r"[A-Za-z0-9_.]{1,100}", name):
            _refuse(f"names an output {name[:60]!r}, which is not a plain name")
    if len(kept["sparse"]) > _MOST_SPARSE:
        _refuse(f"names {len(kept['sparse'])} weights whose zeros are to stay, more than {_MOST_SPARSE}")
    for key in ("torch", "name"):
        if isinstance(facts.get(key), str):
            kept[key] = facts[key][:200]
    kept["dynamic_batch"] = facts.get("dynamic_batch") is True
    return kept
