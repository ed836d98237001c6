"""What crosses the border to a child, and back from one that is not trusted."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from fleetfit.compress.tasks import Build, SplitFile, Task, TaskResult


@pytest.mark.parametrize("name", ["../state/ca.key", "/etc/shadow", "a/b", ".hidden", "", "a\n", "x" * 200])
def test_a_result_names_files_of_its_own_folder_only(name: str) -> None:
    split = SplitFile(name="train", file="train.npz", count=1)
    with pytest.raises(ValidationError, match="should match pattern"):
        SplitFile.model_validate({**split.model_dump(), "file": name})
    build = Build(
        file="build.onnx", runtime="onnxruntime", format="onnx", size_bytes=1, sha256="0" * 64, inputs=[], outputs=[]
    )
    with pytest.raises(ValidationError, match="should match pattern"):
        Build.model_validate({**build.model_dump(), "file": name})


def test_unknown_kinds_and_keys_are_refused() -> None:
    for work in ({"kind": "nothing"}, {"kind": "compress", "format": "pt2", "recipe": "", "more": 1}):
        with pytest.raises(ValidationError):
            Task.model_validate({"task_id": "t", "work": work})
    with pytest.raises(ValidationError):
        TaskResult.model_validate({"task_id": "t", "extra": 1})
