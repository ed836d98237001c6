"""A fetched build on disk: the build, its manifest, and a `run.py` that needs only onnxruntime and numpy."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from fleetfit.core.digests import sha256_file
from fleetfit.core.errors import AlreadyExists, ExhaustedResource, IntegrityError
from fleetfit.proto.v1 import common_pb2, reports_pb2

Download = Callable[[common_pb2.ArtifactRef, Path], None]

RUN_PY: Final = """\
# Runs the build with the options it was measured with: python run.py [INPUTS.npz]
import json, pathlib, sys, numpy as np, onnxruntime as ort
here = pathlib.Path(__file__).parent
manifest = json.loads((here / "manifest.json").read_text())
options, batch = ort.SessionOptions(), manifest["options"]["batch"]
options.intra_op_num_threads, options.inter_op_num_threads = manifest["options"]["threads"], 1
session = ort.InferenceSession(here / manifest["build"], options, providers=["CPUExecutionProvider"])
zeros = {i["name"]: np.zeros([batch, *(max(n, 1) for n in i["shape"][1:])], i["dtype"]) for i in manifest["inputs"]}
feeds = {name: np.load(sys.argv[1])[name][:batch] if sys.argv[1:] else array for name, array in zeros.items()}
print({o.name: value.tolist() for o, value in zip(session.get_outputs(), session.run(None, feeds))})
"""


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
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise AlreadyExists(f"{folder} is there already and not an empty folder; name a new one with -o", field="out")
    name = answer.build.name
    manifest: dict[str, Any] = json.loads(answer.manifest_json)
    # The server names the file; it must not name one elsewhere.
    if not name or Path(name).name != name or name in ("manifest.json", "run.py", ".", ".."):
        raise IntegrityError(f"the server calls the build {name!r}, which is no file name; update the server")
    described = manifest.get("files", {}).get(name, {})
    if described.get("sha256") != answer.build.artifact.sha256:
        raise IntegrityError("the manifest is not of this build (digests differ); try again, or see the server's log")
    manifest["build"] = name
    target = folder.absolute()
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # Beside the target, so that the move at the end is one rename.
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise _disk(error, target) from error
    try:
        download(answer.build.artifact, staging / name)
        if sha256_file(staging / name) != answer.build.artifact.sha256:
            raise IntegrityError(f"what was written for {name} is not what arrived; check the disk and try again")
        (staging / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        (staging / "run.py").write_text(RUN_PY, encoding="utf-8")
        staging.chmod(0o755)
        staging.replace(target)
    except OSError as error:
        raise _disk(error, target) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return Pulled(folder, folder / name, manifest)


def _disk(error: OSError, target: Path) -> ExhaustedResource:
    return ExhaustedResource(
        f"{target} cannot be written ({error.strerror or error}); free space there, or name another folder with -o",
        field="out",
    )
