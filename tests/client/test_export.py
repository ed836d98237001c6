"""The client's export: what goes into the archive, and sentences for what cannot."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fleetfit.client.export import export, load_factory
from fleetfit.core.errors import InvalidModel, NotFound


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.drop = nn.Dropout()

    def forward(self, left: torch.Tensor, right: torch.Tensor, scale: float = 2.0) -> dict[str, torch.Tensor]:
        return {"sum": self.drop(self.layer(left)) + right, "left": left * scale}


def facts_of(path: Path) -> dict[str, Any]:
    with zipfile.ZipFile(path) as archive:
        name = next(name for name in archive.namelist() if name.endswith("fleetfit.json"))
        facts: dict[str, Any] = json.loads(archive.read(name))
    return facts


def test_the_archive_says_what_it_holds(tmp_path: Path) -> None:
    path = export(
        Plain(), {"right": torch.ones(1, 2), "left": torch.ones(1, 3)}, tmp_path / "new" / "m.pt2", name="mine"
    )
    assert facts_of(path) == {
        "inputs": ["left", "right"],
        "outputs": ["sum", "left"],
        "dynamic_batch": True,
        "notes": [],
        "sparse": [],
        "torch": torch.__version__,
        "name": "mine",
    }
    assert [file.name for file in path.parent.iterdir()] == ["m.pt2"]
    program = torch.export.load(path)
    assert program.module()(left=torch.ones(7, 3), right=torch.ones(7, 2))["sum"].shape == (7, 2)


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = Plain()
    model.layer.eval()
    before = [module.training for module in model.modules()]
    export(model, (torch.ones(2, 3), torch.ones(2, 2)), tmp_path / "m.pt2")
    assert [module.training for module in model.modules()] == before == [True, False, True]
    assert torch.backends.mha.get_fastpath_enabled() and torch.is_grad_enabled()


def test_a_batch_kept_on_purpose_has_no_note(tmp_path: Path) -> None:
    path = export(nn.Linear(3, 2), torch.ones(1, 3), tmp_path / "m.pt2", dynamic_batch=False)
    assert (facts_of(path)["dynamic_batch"], facts_of(path)["notes"]) == (False, [])


class Branch(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.sum() > 0:
            return x
        return -x


class Item(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, : int(x.max().item())]


class Numpy(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.from_numpy(np.tanh(x.numpy()))


class Shapes(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ torch.ones(7, 2)


class Autocast(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu"):
            return x @ x.T


class Text(nn.Module):
    def forward(self, x: torch.Tensor) -> str:
        return str(x)


class Raises(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise KeyError("the label file")


@pytest.mark.parametrize(
    ("model", "line", "cure"),
    [
        (Branch(), r"test_export.py:\d+ \(if x.sum\(\) > 0:\)", "torch.where"),
        (Item(), r"test_export.py:\d+ \(return x\[:, : int\(x.max\(\).item\(\)\)\]\)", "instead of|replace .item"),
        (Numpy(), r"test_export.py:\d+ \(return torch.from_numpy", "torch function of the same name"),
        (Shapes(), r"test_export.py:\d+ \(return x @ torch.ones", "sample inputs' shapes"),
        (Autocast(), "autocast.*test_export.py:", "out of forward"),
        (Text(), "returns a str", "return a tensor"),
        (Raises(), r"test_export.py:\d+ \(raise KeyError", "change that line"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_a_failure_names_the_line_and_the_cure(
    model: nn.Module, line: str, cure: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InvalidModel, match=line) as caught:
        export(model, torch.rand(3, 3) + 1, tmp_path / "m.pt2")
    assert caught.match(cure)
    message = caught.value.message
    assert message.endswith(".") and "\n" not in message and len(message) < 600
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", ""), "PyTorch's own printing stays away from the user"


def test_no_grad_inside_forward_is_no_obstacle(tmp_path: Path) -> None:
    class Frozen(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                y = x * 2
            return y + x

    program = torch.export.load(export(Frozen(), torch.ones(2, 3), tmp_path / "m.pt2"))
    assert "higher_order" not in str(program.graph)


@pytest.mark.parametrize(
    ("samples", "says"),
    [
        ((torch.ones(2, 3),), "No sample input was given for right"),
        ({"left": torch.ones(2, 3), "top": torch.ones(2, 2)}, "takes left, right, scale and not 'top'"),
        ((torch.ones(2, 3), torch.ones(3, 2)), r"differ in their first axis, the batch \(left: 2, right: 3\)"),
        ((torch.ones(2, 3), 4), "right is a int; inputs must be tensors"),
        ((torch.ones(2, 3), torch.tensor(1.0)), "right has no batch"),
        ("x", "are a str"),
        ((), "No sample input"),
        ((torch.ones(1),) * 4, "takes 3 inputs and 4 samples came"),
    ],
)
def test_wrong_samples(samples: Any, says: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match=says):
        export(Plain(), samples, tmp_path / "m.pt2")


def test_not_a_model(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="not a dict"):
        export({}, torch.ones(1), tmp_path / "m.pt2")  # type: ignore[arg-type]


def test_a_name_that_data_files_need(tmp_path: Path) -> None:
    class Named(nn.Module):
        def forward(self, targets: torch.Tensor) -> torch.Tensor:
            return targets

    with pytest.raises(InvalidModel, match="rename that parameter"):
        export(Named(), torch.ones(2), tmp_path / "m.pt2")


def test_a_name_that_graphs_need(tmp_path: Path) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.graph = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.graph(x)

    with pytest.raises(InvalidModel, match="attribute 'graph'.*rename it"):
        export(Named(), torch.ones(2, 3), tmp_path / "m.pt2")


FACTORIES = """
import torch
def model(): return torch.nn.Linear(3, 2)
def both(): return torch.nn.Linear(3, 2), torch.ones(1, 3)
def fails(): raise ValueError("no weights at /data")
def text(): return "model"
constant = 3
ready = torch.nn.Linear(1, 1)
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    (tmp_path / "users_models.py").write_text(FACTORIES)
    (tmp_path / "users_broken.py").write_text("import not_installed_anywhere")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("users_models", "users_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return lambda name: f"users_models:{name}"


def test_factories(package: Callable[[str], str]) -> None:
    model, samples = load_factory(package("model"))
    assert isinstance(model, nn.Linear) and samples is None
    model, samples = load_factory(package("both"))
    assert isinstance(samples, torch.Tensor) and samples.shape == (1, 3)
    assert isinstance(load_factory(package("ready"))[0], nn.Linear)


@pytest.mark.parametrize(
    ("spec", "kind", "says"),
    [
        ("users_models:fails", InvalidModel, "failed with ValueError: no weights at /data"),
        ("users_models:text", InvalidModel, "returned a str"),
        ("users_models:constant", InvalidModel, "is a int"),
        ("users_models:missing", NotFound, "has no 'missing'"),
        ("users_missing:model", NotFound, "no module 'users_missing'"),
        ("users_broken:model", NotFound, "no module 'not_installed_anywhere'"),
        ("users_models", InvalidModel, "package.module:factory"),
        ("users models:x", InvalidModel, "package.module:factory"),
    ],
)
def test_bad_factories(package: Callable[[str], str], spec: str, kind: type[Exception], says: str) -> None:
    with pytest.raises(kind, match=says):
        load_factory(spec)


def test_torch_is_imported_only_when_asked_for() -> None:
    code = (
        "import sys, fleetfit.client.export; assert not {'torch', 'numpy'} & set(sys.modules);"
        "assert not [m for m in sys.modules if m.startswith('fleetfit.compress')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_the_sentence_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from fleetfit.client.export import export\n"
        "try: export(None, None, 'm.pt2')\n"
        "except Exception as e: print(type(e).__name__, e)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("UnsupportedHere") and "pip install torch" in done.stdout
