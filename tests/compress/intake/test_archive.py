"""Hostile and damaged archives are refused before PyTorch sees them, each with one sentence that says what to do."""

from __future__ import annotations

import io
import json
import pickle
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetfit.client.export import export
from fleetfit.compress.intake.archive import check_archive
from fleetfit.compress.intake.pt2 import load_pt2
from fleetfit.compress.intake.symbols import is_safe_expression
from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.aten_operators import is_allowed_operator, is_allowed_text

Archives = Callable[[str], Path]
Entries = dict[str, bytes]


class Evil:
    """Would write a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


def unpacked(path: Path) -> Entries:
    with zipfile.ZipFile(path) as archive:
        return {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}


def packed(path: Path, entries: Entries, root: str = "m/") -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in entries.items():
            archive.writestr(root + name, content)
    return path


def with_program(entries: Entries, change: Callable[[dict[str, Any]], object]) -> Entries:
    program = json.loads(entries["models/model.json"])
    change(program)
    return {**entries, "models/model.json": json.dumps(program).encode()}


@pytest.fixture
def entries(archive_of: Archives) -> Entries:
    return unpacked(archive_of("small_cnn"))


def refused(path: Path, says: str) -> None:
    with pytest.raises(InvalidModel, match=says) as caught:
        check_archive(path)
    message = caught.value.message
    assert message.endswith(".") and "\n" not in message and "Traceback" not in message
    assert "fleetfit" in message, "it must say what to do"


def test_the_check_needs_no_torch(archive_of: Archives) -> None:
    code = (
        "import sys; from pathlib import Path; from fleetfit.compress.intake.archive import check_archive;"
        "print(check_archive(Path(sys.argv[1])).facts['inputs']);"
        "assert not {'torch', 'numpy', 'onnx', 'sympy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, archive_of("small_cnn")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['image']"


def test_repacking_by_hand_is_accepted(entries: Entries, tmp_path: Path) -> None:
    """The tests below change one thing each; without a change the archive is good."""
    assert check_archive(packed(tmp_path / "m.pt2", entries)).facts["inputs"] == ["image"]
    load_pt2(tmp_path / "m.pt2")


def test_not_a_zip(tmp_path: Path) -> None:
    (tmp_path / "m.pt2").write_bytes(b"hello")
    refused(tmp_path / "m.pt2", "not a zip")
    (tmp_path / "empty.pt2").write_bytes(b"")
    refused(tmp_path / "empty.pt2", "not a zip")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_truncated(part: float, archive_of: Archives, tmp_path: Path) -> None:
    content = archive_of("small_cnn").read_bytes()
    (tmp_path / "m.pt2").write_bytes(content[: int(len(content) * part)])
    refused(tmp_path / "m.pt2", "damaged or was cut off")


def test_a_state_dict_is_not_a_model(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(3)}, tmp_path / "m.pt2")
    refused(tmp_path / "m.pt2", "not one made by torch.export.save")


def test_zip_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "m.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("m/data/weights/weight_0", bytes(300 << 20))
    refused(tmp_path / "m.pt2", "zip bomb")


def test_too_many_entries(tmp_path: Path) -> None:
    packed(tmp_path / "m.pt2", {f"data/weights/weight_{i}": b"" for i in range(20_001)})
    refused(tmp_path / "m.pt2", "entries")


@pytest.mark.parametrize("name", ["../../etc/passwd", "/etc/passwd", "a\\b", "data/\x07"])
def test_unsafe_names(name: str, entries: Entries, tmp_path: Path) -> None:
    refused(packed(tmp_path / "m.pt2", {**entries, name: b"x"}), "unsafe name")


def test_two_entries_of_one_name_that_readers_would_not_tell_apart(entries: Entries, tmp_path: Path) -> None:
    refused(packed(tmp_path / "m.pt2", {**entries, "models/Model.json": b"{}"}), "two entries named")


@pytest.mark.parametrize(
    "name",
    [
        "data/constants/custom_obj_0",
        "data/constants/opaque_obj_0",
        "data/weights/other.pt",
        "data/aotinductor/m/x.so",
        "data.pkl",
    ],
)
def test_pickles_and_compiled_code_have_no_place(name: str, entries: Entries, tmp_path: Path) -> None:
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    refused(packed(tmp_path / "m.pt2", {**entries, name: evil}), "has no place in an exported model")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [True, 1, "false", None])
def test_a_weight_marked_as_pickle(value: object, entries: Entries, tmp_path: Path) -> None:
    config = json.loads(entries["data/weights/model_weights_config.json"])
    config["config"]["head.0.bias"]["use_pickle"] = value
    evil = {"data/weights/weight_5": pickle.dumps(Evil(tmp_path / "ran"))}
    changed = {**entries, **evil, "data/weights/model_weights_config.json": json.dumps(config).encode()}
    refused(packed(tmp_path / "m.pt2", changed), "as a pickle")


def test_pickled_sample_inputs_are_not_unpickled(entries: Entries, tmp_path: Path) -> None:
    """PyTorch itself would fall back to unpickling when the safe reading fails."""
    buffer = io.BytesIO()
    torch.save(((Evil(tmp_path / "ran"),), {}), buffer)
    path = packed(tmp_path / "m.pt2", {**entries, "data/sample_inputs/model.pt": buffer.getvalue()})
    with pytest.raises(InvalidModel, match="not plain tensors"):
        load_pt2(path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ([[1 << 20], [1]], "more bytes than its file holds"),
        ([[1 << 40], [0]], "too large"),
        ([[-1], [1]], "no fixed size"),
    ],
)
def test_weights_that_lie_about_their_size(sizes: list[list[int]], says: str, entries: Entries, tmp_path: Path) -> None:
    config = json.loads(entries["data/weights/model_weights_config.json"])
    meta = config["config"]["head.0.bias"]["tensor_meta"]
    meta["sizes"], meta["strides"] = ([{"as_int": value} for value in values] for values in sizes)
    changed = {**entries, "data/weights/model_weights_config.json": json.dumps(config).encode()}
    refused(packed(tmp_path / "m.pt2", changed), says)


@pytest.mark.parametrize(
    "target",
    [
        "torch.ops.aten.from_file.default",
        "torch.ops.aten.save.default",
        "torch.ops.mylib.anything.default",
        "torch.hub.load",
        "torch.load",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "math.__loader__.load_module",
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten.relu.__init__.__globals__",
        "#extension:thing",
        "os.system",
    ],
)
def test_foreign_operators(target: str, entries: Entries, tmp_path: Path) -> None:
    changed = with_program(entries, lambda p: p["graph_module"]["graph"]["nodes"][0].update(target=target))
    refused(packed(tmp_path / "m.pt2", changed), "not one of PyTorch's own operators")


def test_control_flow_and_nested_graphs(entries: Entries, tmp_path: Path) -> None:
    node = {"target": "torch.ops.higher_order.cond"}
    changed = with_program(entries, lambda p: p["graph_module"]["graph"]["nodes"][0].update(node))
    refused(packed(tmp_path / "m.pt2", changed), "control flow")


def test_text_arguments_are_keywords(entries: Entries, tmp_path: Path) -> None:
    argument = {"name": "filename", "arg": {"as_string": "/etc/passwd"}, "kind": 1}
    changed = with_program(entries, lambda p: p["graph_module"]["graph"]["nodes"][0]["inputs"].append(argument))
    refused(packed(tmp_path / "m.pt2", changed), "text argument")


@pytest.mark.parametrize(
    "expression",
    [
        "__import__('os').system('true')",
        "(lambda: 1)()",
        "2**99999999",
        "Symbol('x; import os')",
        "().__class__",
        "s0.args",
    ],
)
def test_expressions_outside_the_grammar(expression: str, entries: Entries, tmp_path: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        value = program["graph_module"]["graph"]["tensor_values"]["image"]
        value["sizes"][0] = {"as_expr": {"expr_str": expression, "hint": {"as_int": 2}}}

    refused(packed(tmp_path / "m.pt2", with_program(entries, change)), "not a plain expression")


def test_call_structures_that_import_a_module(entries: Entries, tmp_path: Path) -> None:
    leaf = {"type": None, "context": None, "children_spec": []}
    context = json.dumps({"default_factory_module": "os", "default_factory_name": "system", "dict_context": ["a"]})
    spec = json.dumps([1, {"type": "collections.defaultdict", "context": context, "children_spec": [leaf]}])

    def change(program: dict[str, Any]) -> None:
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = spec

    refused(packed(tmp_path / "m.pt2", with_program(entries, change)), "takes or returns")


INJECTION = "x=__import__('pathlib').Path('ran').touch()"


def rename_placeholder(program: dict[str, Any]) -> None:
    text = json.dumps(program).replace('"image"', json.dumps(INJECTION))
    program.update(json.loads(text))


def rename_weight(program: dict[str, Any]) -> None:
    specs = program["graph_module"]["signature"]["input_specs"]
    specs[0]["parameter"]["parameter_name"] = 'a")or(__import__("os").system("true")'


def rename_argument(program: dict[str, Any]) -> None:
    program["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [INJECTION]


def rename_keyword(program: dict[str, Any]) -> None:
    signature = program["graph_module"]["module_call_graph"][0]["signature"]
    signature["in_spec"] = signature["in_spec"].replace('\\"image\\"', json.dumps(json.dumps(INJECTION))[1:-1])
    assert "__import__" in signature["in_spec"]


@pytest.mark.parametrize("change", [rename_placeholder, rename_weight, rename_argument, rename_keyword])
def test_names_that_would_become_code(
    change: Callable[[dict[str, Any]], None], entries: Entries, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch writes the names of a graph into Python source, and runs it."""
    monkeypatch.chdir(tmp_path)
    path = packed(tmp_path / "m.pt2", with_program(entries, change))
    refused(path, "not a plain name|not identifiers|not plain names")
    with pytest.raises(InvalidModel):
        load_pt2(path)
    assert not (tmp_path / "ran").exists()


def test_input_names_that_would_become_code(entries: Entries, tmp_path: Path) -> None:
    for name in (INJECTION, "a.b", "lambda", "x\n"):
        facts = {**json.loads(entries["extra/fleetfit.json"]), "inputs": [name]}
        refused(
            packed(tmp_path / "m.pt2", {**entries, "extra/fleetfit.json": json.dumps(facts).encode()}),
            "not an identifier",
        )


def test_guards_and_stack_traces_are_dropped(entries: Entries, tmp_path: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        program["guards_code"] = ["__import__('os').system('true')"]

    checked = check_archive(packed(tmp_path / "m.pt2", with_program(entries, change)))
    assert checked.program["guards_code"] == []
    assert "stack_trace" not in json.dumps(checked.program)


@pytest.mark.parametrize(
    "change",
    [
        {"torch_version": "2.4.1"},
        {"torch_version": "<=2.4"},
        {"torch_version": 7},
        {"schema_version": {"major": 7, "minor": 0}},
        {"schema_version": None},
    ],
)
def test_versions_that_cannot_be_read_come_with_the_command(
    change: dict[str, Any], entries: Entries, tmp_path: Path
) -> None:
    path = packed(tmp_path / "m.pt2", with_program(entries, lambda program: program.update(change)))
    refused(path, r"cannot read; export it again after `python -m pip install \"torch>=2.8\"`")


def test_what_a_newer_torch_wrote_is_not_cured_by_exporting_it_once_more(entries: Entries, tmp_path: Path) -> None:
    newer = {"torch_version": "9.9.0", "schema_version": {"major": 9, "minor": 0}}
    cure = r"newer than this fleetfit reads; run `pip install --upgrade .* or export it again with an older torch"
    path = packed(tmp_path / "m.pt2", with_program(entries, lambda program: program.update(newer)))
    refused(path, f"torch 9.9.0 in format 9, which is {cure}")
    refused(packed(tmp_path / "m.pt2", {**entries, "archive_version": b"7"}), f"archive version '7', which is {cure}")


def test_an_unknown_archive_version(entries: Entries, tmp_path: Path) -> None:
    refused(packed(tmp_path / "m.pt2", {**entries, "archive_version": b"x"}), "archive version 'x'.*cannot read")


def legacy(path: Path, samples: object = None) -> Path:
    """An archive in the layout of torch 2.6 and 2.7."""
    from torch._export.serde.serialize import serialize

    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.ReLU()).eval()
    program = torch.export.export(model, (torch.randn(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    artifact = serialize(program)

    def saved(value: object) -> bytes:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return buffer.getvalue()

    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.4")
        archive.writestr("serialized_exported_program.json", artifact.exported_program)
        archive.writestr("serialized_state_dict.pt", saved(dict(program.state_dict)))
        archive.writestr("serialized_constants.pt", saved({}))
        archive.writestr("serialized_example_inputs.pt", saved(samples or program.example_inputs))
    return path


def test_the_layout_of_torch_2_6_is_read(tmp_path: Path) -> None:
    model = load_pt2(legacy(tmp_path / "m.pt2"))
    assert model.parameters_count() == 15
    assert model.dynamic_batch


def test_the_layout_of_torch_2_6_is_not_unpickled(tmp_path: Path) -> None:
    with pytest.raises(InvalidModel, match="not plain tensors"):
        load_pt2(legacy(tmp_path / "m.pt2", ((Evil(tmp_path / "ran"),), {})))
    assert not (tmp_path / "ran").exists()


OF_2_8 = Path(__file__).parent / "archives" / "torch-2.8.0.pt2"


@pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/model.pt"])
def test_the_layout_of_torch_2_8_is_not_unpickled(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"a": Evil(tmp_path / "ran")}, buffer)
    with pytest.raises(InvalidModel, match="not plain tensors"):
        load_pt2(packed(tmp_path / "m.pt2", {**unpacked(OF_2_8), name: buffer.getvalue()}))
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["data/weights/model.pt", "data/constants/model.pt"])
def test_weights_in_a_pickle_do_not_stand_beside_those_that_were_checked(
    name: str, entries: Entries, tmp_path: Path
) -> None:
    """PyTorch would take the pickle and pass over the rest."""
    evil = pickle.dumps(Evil(tmp_path / "ran"))
    refused(packed(tmp_path / "m.pt2", {**entries, name: evil}), "partly in a pickle and partly as numbers")
    whole = unpacked(OF_2_8)
    del whole[name]
    refused(packed(tmp_path / "m.pt2", whole), "partly in a pickle and partly as numbers")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("tiny") / "m.pt2"
    return export(torch.nn.Linear(3, 2), torch.randn(2, 3), path).read_bytes()


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data: st.DataObject, tiny: bytes, tmp_path: Path) -> None:
    """Whatever bytes change, the check accepts or raises our error, never anything else."""
    content = bytearray(tiny)
    for _ in range(data.draw(st.integers(1, 4))):
        position = data.draw(st.integers(0, len(content) - 1))
        kind = data.draw(st.sampled_from(["byte", "cut", "insert", "repeat"]))
        if kind == "byte":
            content[position] = data.draw(st.integers(0, 255))
        elif kind == "cut":
            del content[position : position + data.draw(st.integers(1, 50))]
        elif kind == "insert":
            content[position:position] = data.draw(st.binary(min_size=1, max_size=8))
        else:
            content[position:position] = content[position : position + 40]
        if not content:
            break
    path = tmp_path / "damaged.pt2"
    path.write_bytes(bytes(content))
    try:
        check_archive(path)
    except InvalidModel as refusal:
        assert refusal.message.endswith(".")


scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=12), st.just([]), st.just({})
)


def changed_json(data: st.DataObject, content: bytes, path: Path) -> Path:
    """An archive with one value, somewhere in one of its JSON parts, replaced by any other."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        entries = {name.split("/", 1)[1]: archive.read(name) for name in archive.namelist()}
    part = data.draw(st.sampled_from(sorted(name for name in entries if name.endswith(".json"))))
    tree = json.loads(entries[part])
    here: Any = tree
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        if not keys:
            break
        key = data.draw(st.sampled_from(keys))
        if isinstance(here[key], (dict, list)) and here[key] and data.draw(st.integers(0, 4)):
            here = here[key]
            continue
        here[key] = data.draw(scalars)
        break
    return packed(path, {**entries, part: json.dumps(tree).encode()})


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_values_in_the_program_are_refused_or_harmless(data: st.DataObject, tiny: bytes, tmp_path: Path) -> None:
    try:
        check_archive(changed_json(data, tiny, tmp_path / "changed.pt2"))
    except InvalidModel as refusal:
        assert refusal.message.endswith(".")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_values_that_pass_the_check_load_or_are_refused(
    data: st.DataObject, tiny: bytes, tmp_path: Path
) -> None:
    try:
        load_pt2(changed_json(data, tiny, tmp_path / "changed.pt2"))
    except InvalidModel as refusal:
        assert refusal.message.endswith(".")


@pytest.mark.parametrize(
    "text",
    ["Symbol('s77', positive=True, integer=True)", "s0", "2*s0 + 1", "Mul(Integer(2), Symbol('s0', integer=True))", "s0//2",
     "Max(1, s0)", "Pow(Symbol('s1'), Integer(2))", "u0 <= 4"],
)  # fmt: skip
def test_sizes_that_torch_writes_are_let_through(text: str) -> None:
    assert is_safe_expression(text)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=60))
def test_the_grammar_never_fails(text: str) -> None:
    if is_safe_expression(text):
        assert "__" not in text
        assert "import" not in text


def test_every_functional_operator_of_aten_that_export_emits_is_allowed() -> None:
    for name in ("conv2d.default", "linear.default", "__and__.Tensor", "index_put.default", "to.dtype", "lift_fresh_copy.default",
                 "scaled_dot_product_attention.default", "lstm.input", "_assert_scalar.default", "sym_size.int", "dropout_.default",
                 "upsample_nearest2d.vec", "masked_fill.Scalar", "im2col.default", "set.default") :  # fmt: skip
        assert is_allowed_operator(f"torch.ops.aten.{name}") == (name != "set.default"), name


def test_text_keywords() -> None:
    for text in ("tanh", "mean", "bij,bjk->bik", "same", "none", ""):
        assert is_allowed_text(text), text
    for text in ("/tmp/x", "../x", "a;b", "x" * 100, "a\nb"):
        assert not is_allowed_text(text), text
