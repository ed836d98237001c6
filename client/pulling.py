"""What is fetched on disk: a build with a `run.py` that needs next to nothing, or a network with a `train.py`."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetfit.client.pushing import PART_NAMES
from fleetfit.core.arm import ARM_CORES
from fleetfit.core.digests import sha256_file, short
from fleetfit.core.errors import AlreadyExists, ExhaustedResource, IntegrityError
from fleetfit.proto.v1 import common_pb2, models_pb2, reports_pb2

Download = Callable[[common_pb2.ArtifactRef, Path], None]
_SAMPLES: Final = "samples.npz"
_OURS: Final = ("manifest.json", "run.py", "check.py", _SAMPLES, ".", "..")

RUN_PY: Final = """\
# Runs the build with the options it was measured with: python run.py [INPUTS.npz], or compares it with its report: --check
import json, pathlib, runpy, sys
here = pathlib.Path(__file__).parent
if "--check" in sys.argv: sys.exit(runpy.run_path(str(here / "check.py"))["main"](sys.argv[1:]))
import numpy as np, onnxruntime as ort
manifest = json.loads((here / "manifest.json").read_text())
options, batch = ort.SessionOptions(), manifest["options"]["batch"]
options.intra_op_num_threads, options.inter_op_num_threads = manifest["options"]["threads"], 1
session = ort.InferenceSession(here / manifest["build"], options, providers=["CPUExecutionProvider"])
zeros = {i["name"]: np.zeros([batch, *(max(n, 1) for n in i["shape"][1:])], i["dtype"]) for i in manifest["inputs"]}
feeds = {name: np.load(sys.argv[1])[name][:batch] if sys.argv[1:] else array for name, array in zeros.items()}
print({o.name: value.tolist() for o, value in zip(session.get_outputs(), session.run(None, feeds))})
"""

# Other runtimes' builds are several files in one; fleetfit's own adapters have no dependencies but the runtime and numpy.
RUN_ELSEWHERE_PY: Final = """\
# Runs the build with the options it was measured with: python run.py [INPUTS.npz], or compares it with its report: --check
import json, pathlib, runpy, sys
here = pathlib.Path(__file__).parent
if "--check" in sys.argv: sys.exit(runpy.run_path(str(here / "check.py"))["main"](sys.argv[1:]))
import numpy as np
from fleetfit.runtimes.registry import runtime
manifest = json.loads((here / "manifest.json").read_text())
options, batch = manifest["options"], manifest["options"]["batch"]
model = runtime(manifest["runtime"]).load((here / manifest["build"]).read_bytes(), threads=options["threads"])
zeros = {i["name"]: np.zeros([batch, *(max(n, 1) for n in i["shape"][1:])], i["dtype"]) for i in manifest["inputs"]}
feeds = {name: np.load(sys.argv[1])[name][:batch] if sys.argv[1:] else array for name, array in zeros.items()}
print({name: value.tolist() for name, value in model.run(feeds).items()})
"""

# With a model's other parts: what each gives is handed to the next by name. HOW is one of the two below.
RUN_CHAIN_PY: Final = """\
# Runs pre, the build and post with the options they were measured with: python run.py [INPUTS.npz], or checks the build: --check
import json, pathlib, runpy, sys
here = pathlib.Path(__file__).parent
if "--check" in sys.argv: sys.exit(runpy.run_path(str(here / "check.py"))["main"](sys.argv[1:]))
import numpy as np
manifest = json.loads((here / "manifest.json").read_text())
HOW
options, batch = manifest["options"], manifest["options"]["batch"]
core = {"file": manifest["build"], "inputs": manifest["inputs"], "runtime": manifest["runtime"]}
parts = {"core": core, **manifest["parts"]}
chain = [parts[name] for name in ("pre", "core", "post") if name in parts]
zeros = {i["name"]: np.zeros([batch, *(max(n, 1) for n in i["shape"][1:])], i["dtype"]) for i in chain[0]["inputs"]}
values = {name: np.load(sys.argv[1])[name][:batch] if sys.argv[1:] else array for name, array in zeros.items()}
for part in chain:
    last = run(part, {i["name"]: values[i["name"]] for i in part["inputs"]})
    values = {**values, **last}
print({name: value.tolist() for name, value in last.items()})
"""
_PART_IN_ONNXRUNTIME: Final = """\
import onnxruntime as ort
def run(part, feeds):
    how = ort.SessionOptions()
    how.intra_op_num_threads, how.inter_op_num_threads = options["threads"], 1
    session = ort.InferenceSession(here / part["file"], how, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))
"""
_PART_ELSEWHERE: Final = """\
from fleetfit.runtimes.registry import runtime
def run(part, feeds):
    made_for = runtime(part.get("runtime", "onnxruntime"))
    return made_for.load((here / part["file"]).read_bytes(), threads=options["threads"]).run(feeds)
"""

TRAIN_PY: Final = """\
# Trains the variant further: python train.py DATA.npz   (needs fleetfit[compress]; write your own loss and loop here)
import inspect, pathlib, sys, numpy as np, torch, fleetfit
here = pathlib.Path(__file__).parent
data = {name: torch.from_numpy(array) for name, array in np.load(sys.argv[1]).items()}
model = fleetfit.trainable(here)
inputs = list(inspect.signature(model.forward).parameters)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
model.train()
for rows in torch.randperm(len(data["targets"])).split(32):
    outputs = model(*(data[name][rows] for name in inputs))
    outputs = next(iter(outputs.values())) if isinstance(outputs, dict) else outputs
    loss = torch.nn.functional.cross_entropy(outputs, data["targets"][rows])
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
fleetfit.export(model.eval(), {name: data[name][:2] for name in inputs}, here / "trained.pt2")
print(f"next: fleetfit models push {here / 'trained.pt2'} --recovers VARIANT")
"""


@dataclass(frozen=True)
class PulledVariant:
    """A fetched network: its folder, the archive in it, and the variant's whole key."""

    folder: Path
    network: Path
    variant: str


@dataclass(frozen=True)
class Pulled:
    """A fetched build: its folder, the build's file in it, and the manifest."""

    folder: Path
    build: Path
    manifest: dict[str, Any]


def place_build(answer: reports_pb2.GetBuildResponse, folder: Path, download: Download) -> Pulled:
    """Make `folder` with the build in it. It appears whole or not at all.

    Raises AlreadyExists where it is there and not empty, IntegrityError where manifest and build disagree.
    """
    _refuse_full(folder)
    name = answer.build.name
    manifest: dict[str, Any] = json.loads(answer.manifest_json)
    # The server names the file; it must not name one elsewhere.
    if not name or Path(name).name != name or name in _OURS:
        raise IntegrityError(f"the server calls the build {name!r}, which is no file name; update the server")
    described = manifest.get("files", {}).get(name, {})
    if described.get("sha256") != answer.build.artifact.sha256:
        raise IntegrityError("the manifest is not of this build (digests differ); try again, or see the server's log")
    manifest["build"] = name
    _check_parts(answer, manifest, name)
    told = manifest.get("check")
    if isinstance(told, dict):
        told["arm_cores"] = ARM_CORES
    with _appearing(folder) as staging:
        _fetch(answer.build.artifact, staging / name, download)
        if answer.HasField("samples"):
            if manifest.get("files", {}).get(_SAMPLES, {}).get("sha256") != answer.samples.artifact.sha256:
                raise IntegrityError(
                    "the manifest is not of these samples (digests differ); try again, or see the server's log"
                )
            _fetch(answer.samples.artifact, staging / _SAMPLES, download)
        for named in answer.parts:
            _fetch(named.artifact, staging / named.name, download)
        shutil.copyfile(Path(__file__).with_name("check_build.py"), staging / "check.py")
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (staging / "run.py").write_text(_script(manifest), encoding="utf-8")
    return Pulled(folder, folder / name, manifest)


def _script(manifest: dict[str, Any]) -> str:
    here = _in_onnxruntime(manifest)
    if manifest.get("parts"):
        return RUN_CHAIN_PY.replace("HOW\n", _PART_IN_ONNXRUNTIME if here else _PART_ELSEWHERE)
    return RUN_PY if here else RUN_ELSEWHERE_PY


def _check_parts(answer: reports_pb2.GetBuildResponse, manifest: dict[str, Any], build: str) -> None:
    """The parts are those of the manifest, under the names that they must have. Raises IntegrityError."""
    described = manifest.get("parts", {})
    expected = {
        f"{part}.onnx": one.get("sha256") for part, one in described.items() if one.get("file") == f"{part}.onnx"
    }
    arrived = {named.name: named.artifact.sha256 for named in answer.parts}
    if (
        not set(described) <= set(PART_NAMES)
        or len(expected) != len(described)
        or arrived != expected
        or build in expected
    ):
        raise IntegrityError(
            "the manifest's pre and post parts are not those that came; try again, or update the server"
        )


# Runtimes that no extra of fleetfit's installs: they have to fit the GPU's own libraries.
_NO_EXTRA: Final = {
    "tensorrt": "TensorRT's Python module",
    "torch_tensorrt": "torch_tensorrt",
    "onnxruntime-cuda": "onnxruntime-gpu",
    "onnxruntime-tensorrt": "onnxruntime-gpu",
}


def needed(pulled: Pulled) -> str:
    """What `run.py` needs to be installed."""
    if _in_onnxruntime(pulled.manifest):
        return "onnxruntime and numpy"
    runtime = pulled.manifest["runtime"]
    elsewhere = _NO_EXTRA.get(runtime, "")
    parts = pulled.manifest.get("parts") and elsewhere != "onnxruntime-gpu"
    extras = [*([] if elsewhere else [runtime]), *(["onnxruntime"] if parts else [])]
    ours = f"fleetfit[{','.join(extras)}]" if extras else "fleetfit, numpy"
    return f"{ours} and {elsewhere}" if elsewhere else ours


def _in_onnxruntime(manifest: dict[str, Any]) -> bool:
    return bool(manifest.get("runtime", "onnxruntime") == "onnxruntime")


def place_variant(answer: models_pb2.GetVariantResponse, folder: Path, download: Download) -> PulledVariant:
    """Make `folder` with a variant's network, lineage, recipe and a `train.py`. It appears whole or not at all.

    Raises AlreadyExists where it is there and not empty, IntegrityError where what arrived is not what was announced.
    """
    _refuse_full(folder)
    with _appearing(folder) as staging:
        _fetch(answer.trainable, staging / "variant.pt2", download)
        (staging / "lineage.json").write_text(answer.lineage_json.rstrip() + "\n", encoding="utf-8")
        (staging / "recipe.yaml").write_text(answer.recipe, encoding="utf-8")
        (staging / "train.py").write_text(TRAIN_PY.replace("VARIANT", short(answer.variant)), encoding="utf-8")
    return PulledVariant(folder, folder / "variant.pt2", answer.variant)


def _refuse_full(folder: Path) -> None:
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise AlreadyExists(f"{folder} is there already and not an empty folder; name a new one with -o", field="out")


def _fetch(artifact: common_pb2.ArtifactRef, path: Path, download: Download) -> None:
    download(artifact, path)
    if sha256_file(path) != artifact.sha256:
        raise IntegrityError(f"what was written for {path.name} is not what arrived; check the disk and try again")


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place once all is written into it, and is gone where that fails."""
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the move at the end is one rename.
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _disk(error, target) from error
    try:
        yield staging
        staging.chmod(0o755)
        staging.replace(target)
    except OSError as error:
        raise _disk(error, target) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _disk(error: OSError, target: Path) -> ExhaustedResource:
    return ExhaustedResource(
        f"{target} cannot be written ({error.strerror or error}); free space there, or name another folder with -o",
        field="out",
    )
