"""The commands against a real server over TLS, each in a process of its own."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fleetfit
from fleetfit import cli
from fleetfit.compress.recipe import Recipe
from fleetfit.core.errors import FleetfitError, NotFound, Unavailable

# The modules below are loaded by test code only; importlib mode gives conftest no importable name.
Server = Any

pytestmark = pytest.mark.system

MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))

    def forward(self, x):
        return self.layers(x)

def make():
    return Net(), (torch.zeros(2, 8),)

class Branches(Net):
    def forward(self, x):
        return self.layers(x) if x.sum() > 0 else x

def branches():
    return Branches(), (torch.zeros(2, 8),)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a module with a model, and its data."""
    made = tmp_path_factory.mktemp("user")
    (made / "tinynet.py").write_text(MODEL)
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 8)).astype(np.float32)
    np.savez(made / "tiny.npz", x=x, targets=random.integers(0, 3, 300))
    np.savez(made / "wrong.npz", x=x[:, :5], targets=random.integers(0, 3, 300))
    return made


@pytest.fixture(scope="module")
def pushed(server: Server, folder: Path) -> None:
    """Model and data on the server."""
    model = server.run("models", "push", "tinynet:make", "--json", cwd=folder)
    assert model.code == 0, model.err
    assert model.json["model"]["state"] == "accepted"
    data = server.run("data", "push", "tiny.npz", "--model", "tinynet", "--json", cwd=folder)
    assert data.code == 0, data.err
    assert {split["name"]: split["count"] for split in data.json["dataset"]["splits"]}["train"] > 150


def test_a_command_line_of_the_same_user_finds_the_server_with_nothing_set_up(server: Server) -> None:
    ended = server.run("devices", "list", "--json")
    assert (ended.code, ended.json, ended.err) == (0, {"devices": []}, "")


def test_another_machine_uses_address_and_token(server: Server, tmp_path: Path) -> None:
    elsewhere = {"FLEETFIT_CONFIG_DIR": str(tmp_path), "FLEETFIT_SERVER": server.listen}
    assert server.run("models", "list", "--json", **elsewhere, FLEETFIT_TOKEN=server.token).code == 0
    ended = server.run("models", "list", **elsewhere)
    assert ended.code == 1 and "FLEETFIT_TOKEN" in ended.err
    secret, _, digest = server.token.partition(".")
    wrong = ("A" if secret[0] != "A" else "B") + secret[1:]
    ended = server.run("models", "list", "--json", **elsewhere, FLEETFIT_TOKEN=f"{wrong}.{digest}")
    assert ended.code == 1 and ended.json["error"]["code"] == "UNAUTHENTICATED"
    tampered = digest[:-1] + ("0" if digest[-1] != "0" else "1")
    ended = server.run("models", "list", "--json", **elsewhere, FLEETFIT_TOKEN=f"{secret}.{tampered}")
    assert ended.code == 1 and ended.json["error"]["code"] == "PERMISSION_DENIED"
    assert "nothing was sent" in ended.err


def test_a_credential_of_another_server_is_refused_with_a_sentence(server: Server, tmp_path: Path) -> None:
    other = json.loads(next((server.folder / "config" / "servers").iterdir()).read_text())
    from cryptography import x509  # a certificate that is well-formed, of a CA that is not this server's
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another")])
    import datetime

    now = datetime.datetime.now(datetime.timezone.utc)
    ca = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
        .not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True).sign(key, hashes.SHA256())
    )  # fmt: skip
    servers = tmp_path / "servers"
    servers.mkdir()
    file = servers / "x.json"
    file.write_text(json.dumps(other | {"ca_pem": ca.public_bytes(serialization.Encoding.PEM).decode()}))
    file.chmod(0o600)
    ended = server.run("devices", "list", FLEETFIT_CONFIG_DIR=str(tmp_path))
    assert ended.code == 1
    assert "shows another CA" in ended.err and ended.err.count("\n") == 1


def test_enroll_prints_a_line_to_paste(server: Server) -> None:
    made = server.run("devices", "enroll", "--name", "pi", "--label", "edge", "--json").json
    assert made["command"].startswith(f"fleetfit agent --server {server.listen} --token ")
    assert made["token"] in made["command"] and made["expires_unix_ms"] > time.time() * 1000
    shown = server.run("devices", "enroll")
    assert "\n    fleetfit agent --server" in shown.out and "fleetfit server wheels fetch" in shown.out


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (("devices", "show", "nobody"), 1, "there is no device 'nobody'"),
        (("devices", "label", "nobody", "x"), 1, "there is no device 'nobody'"),
        (("devices", "hours", "nobody", "22:00-06:00"), 1, "there is no device or label 'nobody'"),
        (("devices", "hours", "nobody", "at night"), 1, "are no hours"),
        (("devices", "hours", "nobody"), 2, "--always"),
        (("models", "show", "nothing"), 1, "there is no model 'nothing'"),
        (("data", "show", "nothing"), 1, "there is no dataset 'nothing'"),
        (("data", "push", "missing.npz"), 1, "there is no file 'missing.npz'"),
        (("data", "push", "tinynet.py"), 1, "is not an .npz"),
        (("data", "push", "tiny.npz", "--task", "guessing"), 1, "there is no task 'guessing'"),
        (("data", "push", "tiny.npz", "--metric", "f1"), 1, "there is no metric 'f1'"),
        (("data", "push", "tiny.npz", "--test", "missing.npz"), 1, "there is no file 'missing.npz'"),
        (("models", "push", "tinynet:missing"), 1, "has no 'missing'"),
        (("models", "push", "tinynet:branches"), 1, "tensor"),
        (("models", "push", "tiny.npz"), 1, "is no model"),
        (("models", "check", "tinynet:branches"), 1, "tensor"),
        (("models", "pull", "abcdef1", "--trainable", "-o", "out"), 1, "there is no variant 'abcdef1'"),
        (("models", "pull", "abcdef1", "-o", "out"), 2, "say --trainable"),
        (("models", "pull", "abcdef1", "--trainable"), 2, "-o DIR"),
        (("models", "push", "tinynet:make", "--recovers", "abcdef1", "--name", "x"), 2, "leave --name out"),
        (("models", "push", "tinynet:make", "--recovers", "abcdef1", "--post", "x"), 2, "leave --pre and --post out"),
        (("models", "push", "tinynet:make", "--pre", "tiny.npz"), 1, "cannot be the pre part, which is an .onnx file"),
        (("models", "push", "tinynet:make", "--post", "missing.onnx"), 1, "there is no file 'missing.onnx'"),
        (("compress", "m.pt2", "--local", "--p95-end-to-end-ms", "5"), 2, "--local measures nothing"),
        (("models", "push", "missing.pt2", "--recovers", "abcdef1"), 1, "there is no file 'missing.pt2'"),
        (("models", "push", "tinynet:make", "--recovers", "abcdef1"), 1, "there is no variant 'abcdef1'"),
        (("compress", "m.pt2", "--local", "--recovered", "abcdef1"), 2, "leave it out with --local"),
        (("jobs", "show", "last"), 1, "there is no job yet"),
        (("jobs", "watch", "abcdef123"), 1, "there is no job"),
        (("report", "last"), 1, "there is no job yet"),
        (("report", "last", "--format", "pdf"), 2, "there is no format 'pdf'"),
        (("report", "last", "--format", "csv", "--table", "chairs"), 2, "there is no table 'chairs'"),
        (("report", "last", "--format", "md", "--table", "scaling"), 2, "--table goes with --format csv"),
        (("report", "last", "--verify", "--table", "scaling"), 2, "leave --format, --table and -o out"),
        (("pull", "last", "-o", "out"), 1, "there is no job yet"),
        (("pull", "last"), 2, "-o DIR"),
        (("bench", "tinynet", "--plan"), 2, "no device is named"),
        (("compress", "tinynet", "--on", "pi"), 2, "no dataset is named"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--wait", "--plan"), 2, "leave one of the two out"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--max-drop", "lots"), 2, "not a loss of the metric"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--p95-ms", "0"), 2, "is no limit"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--threads", "many"), 2, "--threads"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--search"), 2, "not available yet"),
        (("compress", "tinynet", "--data", "d", "--on", "pi", "--incumbent", "x.onnx"), 2, "not available yet"),
        (("compress", "--local", "missing.pt2", "--recipe", "int8-dynamic", "-o", "out"), 1, "there is no file"),
        (("compress", "--local", "missing.pt2", "--recipe", "nothing", "-o", "out"), 1, "there is no recipe 'nothing'"),
        (("compress", "--local", "missing.pt2", "-o", "out"), 2, "--recipe NAME_OR_FILE"),
        (
            ("compress", "--local", "m.pt2", "--recipe", "pruned", "-o", "out", "--p95-ms", "1"),
            2,
            "--local measures nothing",
        ),
        (("compress", "m", "--data", "d", "--compute", "auto"), 2, "--compute goes with --local"),
        (("compress", "m", "--data", "d", "--device-profile", "x86-amx"), 2, "--device-profile goes with --local"),
        (
            ("compress", "--local", "m.pt2", "--recipe", "pruned", "-o", "out", "--device-profile", "x86-amy"),
            1,
            "did you mean 'x86-amx'?",
        ),
    ],
)
def test_bad_input_is_one_sentence_and_an_exit_code(
    server: Server,
    folder: Path,
    words: tuple[str, ...],
    code: int,
    sentence: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(server.folder / "config"))
    # In this process, so that thirty of them do not start thirty interpreters.
    ended = cli.run([*words, "--json"]), *capsys.readouterr()
    assert ended[0] == code, ended
    assert sentence in ended[2]
    assert "Traceback" not in ended[1] + ended[2]
    assert json.loads(ended[1])["error"]["message"], "the same sentence for programs"
    assert [line for line in ended[2].splitlines() if line.startswith("fleetfit: ")] == ended[2].splitlines()[-1:]


def test_data_that_does_not_fit_is_refused_by_the_server(server: Server, folder: Path, pushed: None) -> None:
    ended = server.run("data", "push", "wrong.npz", "--model", "tinynet", "--json", cwd=folder)
    assert ended.code == 1
    assert ended.json["error"]["code"] == "INVALID_DATA"
    assert "(300, 5)" in ended.err


def test_what_was_pushed_is_listed_and_shown(server: Server, pushed: None) -> None:
    assert [m["name"] for m in server.run("models", "list", "--json").json["models"]] == ["tinynet"]
    assert "tinynet:1  accepted" in server.run("models", "list").out
    shown = server.run("models", "show", "tinynet").out
    assert "x: float32 (N, 8)" in shown and "387" in shown
    assert "classification, 3 classes" in server.run("data", "show", "tiny").out


def test_the_same_content_again_is_the_same_version(server: Server, folder: Path, pushed: None) -> None:
    ended = server.run("data", "push", "tiny.npz", "--model", "tinynet", "--json", cwd=folder)
    assert ended.json["dataset"]["version"] == 1


def test_check_says_what_an_export_would_give(server: Server, folder: Path) -> None:
    ended = server.run("models", "check", "tinynet:make", "--json", cwd=folder)
    assert ended.code == 0, ended.err
    assert ended.json["model"]["inputs"] == ["x"] and ended.json["model"]["dynamic_batch"] is True


def test_a_job_names_what_it_cannot_find(server: Server, folder: Path, pushed: None) -> None:
    (folder / "bad.yaml").write_text("name: bad\nsteps:\n  - prune_it_all: {}\n")
    for words, sentence in (
        (("--on", "nobody"), "there is no device or label 'nobody'"),
        (("--on", "all"), "device"),
    ):
        ended = server.run("compress", "tinynet", "--data", "tiny", *words, "--plan", "--json", cwd=folder)
        assert ended.code == 1 and sentence in ended.err


def test_compress_without_a_server_puts_a_build_beside_its_lineage(server: Server, folder: Path) -> None:
    fleetfit_config = {"FLEETFIT_CONFIG_DIR": str(folder / "no-config")}
    exported = folder / "local.pt2"
    import torch

    fleetfit.export(torch.nn.Sequential(torch.nn.Linear(8, 3)), (torch.zeros(2, 8),), exported)
    words = ("compress", "--local", str(exported), "--recipe", "int8-dynamic", "-o", "made")
    ended = server.run(*words, "--json", cwd=folder, **fleetfit_config)
    assert ended.code == 0, ended.err
    assert {"manifest.json", "lineage.json", "recipe.yaml"} < {file.name for file in (folder / "made").iterdir()}
    assert ended.json["notes"] == [], "no width changes"
    again = server.run(*words, cwd=folder, **fleetfit_config)
    assert again.code == 1 and "not an empty folder" in again.err


@pytest.mark.parametrize(("profile", "width"), [("", 8), ("raspberry-pi-4", 4), ("x86-amx", 16)])
def test_a_recipe_is_fitted_to_the_kind_of_device(
    folder: Path, tmp_path: Path, profile: str, width: int, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch

    exported, out, recipe = tmp_path / "wide.pt2", tmp_path / "made", tmp_path / "cut.yaml"
    layers = (torch.nn.Linear(8, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    fleetfit.export(torch.nn.Sequential(*layers), (torch.zeros(2, 8),), exported)
    recipe.write_text("{name: cut, steps: [zero_pruning: {ratio: 0.7}]}")
    words = ["compress", "--local", str(exported), "--recipe", str(recipe), "-o", str(out), "--json"]
    words += ["--max-size-mb", "0.0001"]
    assert cli.run([*words, *(["--device-profile", profile] if profile else [])]) == 0
    told = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert f"multiples of {width}, " in told["notes"][0]
    assert "build.onnx has" in told["notes"][1] and "at most 100 B is allowed" in told["notes"][1]
    step = told["result"]["lineage"][-1]
    assert step["parameters_of_pass"]["round_to"] == width
    kept = -(-10 // width) * width
    assert step["parameters"] == 8 * kept + kept + 3 * kept + 3
    assert Recipe.from_yaml((out / "recipe.yaml").read_text()).steps[0].parameters()["round_to"] == width


def test_profiles_are_listed_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["devices", "profiles", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["profiles"]
    assert len(listed) >= 20
    assert {one["agent"]["status"] for one in listed} >= {"tested", "expected", "container"}
    assert cli.run(["devices", "profiles", "jetson-nano", "--json"]) == 0
    nano = json.loads(capsys.readouterr().out)["profile"]
    assert [mode["name"] for mode in nano["power_modes"]] == ["MAXN", "5W"]
    assert cli.run(["devices", "profiles", "jetson-nano"]) == 0
    assert "container: JetPack 4 is the last" in capsys.readouterr().out
    assert cli.run(["devices", "profiles", "toaster"]) == 1
    assert "no device profile 'toaster'; there are ampere-altra" in capsys.readouterr().err


def test_the_client_waits_for_a_server_that_restarts(make_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    own = make_server()
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(own.folder / "config"))
    with fleetfit.connect() as client:
        assert client.models() == []
        own.stop(kill=True)
        with pytest.raises(Unavailable, match=rf"the server at {own.listen} cannot be reached"):
            client.models()
        back = threading.Timer(0.5, own.start)
        back.start()
        deadline = time.monotonic() + 30
        while True:
            try:
                assert client.models() == []
                break
            except Unavailable:
                assert time.monotonic() < deadline
        back.join()
        # The same loop and channel go on after an error of the server's.
        with pytest.raises(NotFound, match="there is no model 'x'"):
            client.model("x")
    own.stop()
    with pytest.raises(FleetfitError), fleetfit.connect() as late:
        late.models()


def test_a_closed_client_says_so(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETFIT_CONFIG_DIR", str(server.folder / "config"))
    first, second = fleetfit.connect(), fleetfit.connect()
    first.close()
    first.close()
    assert isinstance(second.devices(), list), "another client of the same process goes on"
    second.close()
    with pytest.raises(RuntimeError, match="closed"):
        second.devices()
