"""Datasets: what is refused, in one sentence that says what to do, and how the rest is split."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fleetfit.compress.intake.data import check_and_split
from fleetfit.compress.tasks import DataFacts, IntakeData, Tensor
from fleetfit.core.errors import InvalidData

IMAGE = Tensor(name="image", dtype="float32", shape=[-1, 1, 4, 4])
SCORES = Tensor(name="output", dtype="float32", shape=[-1, 3])
VALUE = Tensor(name="output", dtype="float32", shape=[-1, 1])
CLASSIFICATION = IntakeData(inputs=[IMAGE], outputs=[SCORES])
ACCURACY = IntakeData(inputs=[IMAGE], outputs=[SCORES], metric="accuracy")
REGRESSION = IntakeData(inputs=[IMAGE], outputs=[VALUE], metric="mean_absolute_error")


def arrays(count: int = 100, **changed: Any) -> dict[str, Any]:
    generator = np.random.default_rng(0)
    made: dict[str, Any] = {
        "image": generator.random((count, 1, 4, 4), dtype=np.float32),
        "targets": np.arange(count) % 3,
    }
    made.update(changed)
    return {name: value for name, value in made.items() if value is not None}


def _judged(metric: str) -> IntakeData:
    return IntakeData(inputs=[IMAGE], outputs=[SCORES], metric=metric)


def saved(folder: Path, values: dict[str, Any], name: str = "data") -> Path:
    path = folder / name
    with path.open("wb") as file:
        np.savez(file, **values)
    return path


def intake(
    folder: Path, values: dict[str, Any], work: IntakeData = CLASSIFICATION, test: dict[str, Any] | None = None
) -> DataFacts:
    own = saved(folder, test, "test") if test is not None else None
    return check_and_split(saved(folder, values), own, work, folder / "out")


def loaded(folder: Path, name: str) -> dict[str, Any]:
    with np.load(folder / "out" / f"{name}.npz") as file:
        return dict(file)


def test_three_splits_hold_every_sample_once_in_its_stored_dtype(tmp_path: Path) -> None:
    values = arrays(100, image=np.arange(1600, dtype=np.uint8).reshape(100, 1, 4, 4))
    values["image"][:, 0, 0, 0] = np.arange(100)
    work = IntakeData(inputs=[IMAGE.model_copy(update={"dtype": "uint8"})], outputs=[SCORES])
    facts = intake(tmp_path, values, work)
    assert (facts.task, facts.metric, facts.classes) == ("classification", "accuracy", 3)
    assert [(s.name, s.file) for s in facts.splits] == [(n, f"{n}.npz") for n in ("train", "validation", "test")]
    parts = [loaded(tmp_path, split.name) for split in facts.splits]
    assert [len(part["image"]) for part in parts] == [split.count for split in facts.splits] == [70, 15, 15]
    assert {part["image"].dtype for part in parts} == {np.dtype(np.uint8)}
    assert sorted(np.concatenate([part["image"][:, 0, 0, 0] for part in parts])) == list(range(100))
    for part in parts:
        assert np.array_equal(part["targets"], part["image"][:, 0, 0, 0] % 3)


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        intake(tmp_path / name, arrays(), CLASSIFICATION.model_copy(update={"seed": seed}))
    first, second, other = ((tmp_path / name / "out" / "validation.npz").read_bytes() for name in "abc")
    assert first == second != other


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 60), min_size=2, max_size=6),
    seed=st.integers(0, 1000),
    test=st.booleans(),
)
def test_classes_have_the_same_share_in_every_split(sizes: list[int], seed: int, test: bool) -> None:
    from fleetfit.compress.intake.splits import split_at_random

    labels = np.repeat(np.arange(len(sizes)), sizes)
    try:
        splits = split_at_random(len(labels), seed, test=test, labels=labels)
    except InvalidData:
        assert len(labels) < 30
        return
    parts = [splits.train, splits.validation, *([splits.test] if test else [])]
    assert sorted(np.concatenate(parts)) == list(range(len(labels)))
    for label, size in enumerate(sizes):
        assert (labels[splits.train] == label).any(), "every class is trained on"
        if size >= 3:
            assert abs((labels[splits.validation] == label).sum() - 0.15 * size) <= 1.5


@settings(max_examples=50, deadline=None)
@given(groups=st.lists(st.integers(0, 8), min_size=20, max_size=60), seed=st.integers(0, 100))
def test_a_group_is_never_in_two_splits(groups: list[int], seed: int) -> None:
    from fleetfit.compress.intake.splits import split_by_group

    names = np.array(groups)
    if len(set(groups)) < 3:
        with pytest.raises(InvalidData, match="groups"):
            split_by_group(names, seed, test=True)
        return
    splits = split_by_group(names, seed, test=True)
    parts = [set(names[part]) for part in (splits.train, splits.validation, splits.test)]
    assert all(parts)
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert len(splits.train) + len(splits.validation) + len(splits.test) == len(groups)


def test_groups_may_be_text(tmp_path: Path) -> None:
    groups = np.array([f"patient-{i // 10}" for i in range(100)])
    facts = intake(tmp_path, arrays(100, groups=groups))
    assert "groups" not in loaded(tmp_path, "train")
    assert sum(split.count for split in facts.splits) == 100
    assert any("group" in note for note in facts.notes)


def test_ones_own_test_file_is_the_test_split_as_it_is(tmp_path: Path) -> None:
    own = arrays(20)
    facts = intake(tmp_path, arrays(100), CLASSIFICATION.model_copy(update={"own_test": True}), own)
    assert [split.count for split in facts.splits] == [85, 15, 20]
    assert np.array_equal(loaded(tmp_path, "test")["image"], own["image"])


def test_regression(tmp_path: Path) -> None:
    targets = np.random.default_rng(0).random(100).astype(np.float32)
    facts = intake(tmp_path, arrays(100, targets=targets), IntakeData(inputs=[IMAGE], outputs=[VALUE]))
    assert (facts.task, facts.metric, facts.classes) == ("regression", "mean_absolute_error", 0)
    assert loaded(tmp_path, "train")["targets"].shape == (70, 1)
    assert any("was taken as" in note for note in facts.notes)


def test_without_a_model_and_without_targets(tmp_path: Path) -> None:
    facts = intake(tmp_path, arrays(targets=None), IntakeData())
    assert (facts.task, facts.metric, facts.targets) == ("", "", None)
    assert facts.inputs == [Tensor(name="image", dtype="float32", shape=[-1, 1, 4, 4])]


def nan_at(row: int) -> Any:
    image = arrays()["image"]
    image[row, 0, 2, 1] = np.nan
    return image


@pytest.mark.parametrize(
    ("changed", "work", "says"),
    [
        ({"image": None, "picture": np.ones((100, 1, 4, 4), np.float32)}, CLASSIFICATION, "lacks the array 'image'.*picture"),
        ({"extra": np.ones(100)}, CLASSIFICATION, "'extra', which is no input"),
        ({"image": np.ones((100, 4, 4), np.float32)}, CLASSIFICATION,
         r"shape \(100, 4, 4\) where the model takes \(samples, 1, 4, 4\)"),
        ({"image": np.ones((100, 1, 4, 4))}, CLASSIFICATION, r"float64 where the model takes float32.*astype\('float32'\)"),
        ({"image": nan_at(7)}, CLASSIFICATION, "NaN or infinity in 'image', first in sample 7"),
        ({"image": np.ones((0, 1, 4, 4), np.float32), "targets": np.ones(0, int)}, CLASSIFICATION, "empty array 'image'"),
        ({"targets": np.zeros(99, int)}, CLASSIFICATION, "differ in length .*image: 100, targets: 99"),
        ({"targets": np.arange(100) % 11}, CLASSIFICATION, r"class index 10 where the model has 3 classes \(0 to 2\)"),
        ({"targets": np.arange(100) % 3 - 1}, CLASSIFICATION, "class index -1"),
        ({"targets": np.eye(3)[np.arange(100) % 3].astype(int)}, ACCURACY, r"argmax\(1\)"),
        ({"targets": np.ones(100)}, ACCURACY, "astype.'int64'"),
        ({"targets": np.ones((100, 2))}, REGRESSION, r"shape \(2,\) per sample where the model's output output has \(1,\)"),
        ({"targets": np.array(["cat"] * 100)}, CLASSIFICATION, "text in 'targets'"),
        ({"targets": None}, REGRESSION, "no targets"),
        ({"targets": np.array([{}] * 100, dtype=object)}, CLASSIFICATION, "never unpickled"),
        ({"targets": np.ones(100, complex)}, CLASSIFICATION, "dtype complex"),
        ({}, IntakeData(inputs=[IMAGE], outputs=[SCORES], metric="beauty"), "no metric 'beauty'; use one of accuracy"),
        ({}, IntakeData(inputs=[IMAGE], outputs=[VALUE], metric="accuracy"), "no score per class"),
        ({}, IntakeData(inputs=[IMAGE], outputs=[SCORES], metric="top3_accuracy"), "needs more than 3 classes"),
        ({"targets": np.zeros(100, int)}, IntakeData(inputs=[IMAGE], outputs=[SCORES], metric="auroc"), "at least two"),
        ({}, IntakeData(inputs=[IMAGE], outputs=[VALUE], metric="f1@0.5"), "targets other than 0 and 1"),
        ({"targets": np.ones(100, int)}, IntakeData(inputs=[IMAGE], outputs=[VALUE], metric="auroc"), "only 1 as targets"),
        ({"targets": np.arange(200).reshape(100, 2) % 2}, _judged("f1@0.5"), r"shape \(2,\)"),
        ({"targets": np.arange(100) % 3 / 2}, _judged("macro_f1"), "macro_f1 needs class indices"),
    ],
)  # fmt: skip
def test_bad_data_is_refused_with_what_to_do(
    changed: dict[str, Any], work: IntakeData, says: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidData, match=says) as caught:
        intake(tmp_path, arrays(**changed), work)
    assert caught.value.message.endswith(".") and "\n" not in caught.value.message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("metric", "outputs", "targets", "task", "classes"),
    [
        ("macro_f1", SCORES, np.arange(100) % 3, "classification", 3),
        ("top2_accuracy", SCORES, np.arange(100) % 3, "classification", 3),
        ("auroc", SCORES, np.arange(100) % 3, "classification", 3),
        ("auroc", VALUE, np.arange(100) % 2, "multilabel", 1),
        ("auroc", SCORES, np.arange(300).reshape(100, 3) % 2, "multilabel", 3),
        ("f1@0.5", VALUE, np.arange(100) % 2 == 0, "multilabel", 1),
        ("f1@-1", SCORES, np.arange(300).reshape(100, 3) % 2 == 0, "multilabel", 3),
    ],
)
def test_what_is_predicted_follows_from_the_metric_and_the_targets(
    metric: str, outputs: Tensor, targets: Any, task: str, classes: int, tmp_path: Path
) -> None:
    work = IntakeData(inputs=[IMAGE], outputs=[outputs], metric=metric)
    facts = intake(tmp_path, arrays(targets=targets), work)
    assert (facts.task, facts.metric, facts.classes) == (task, metric, classes)
    kept = loaded(tmp_path, "validation")["targets"]
    assert kept.dtype.kind == "i" and len(np.unique(kept)) == min(3, len(np.unique(targets)))


def test_without_targets_agreement_may_be_asked_for(tmp_path: Path) -> None:
    facts = intake(tmp_path, arrays(targets=None), _judged("agreement"))
    assert (facts.task, facts.metric, facts.targets) == ("", "agreement", None)


def test_the_targets_are_those_of_the_output_that_the_metric_names(tmp_path: Path) -> None:
    both = [VALUE.model_copy(update={"name": "score"}), SCORES.model_copy(update={"name": "logits"})]
    facts = intake(tmp_path, arrays(), IntakeData(inputs=[IMAGE], outputs=both, metric="macro_f1:logits"))
    assert (facts.task, facts.metric, facts.classes) == ("classification", "macro_f1:logits", 3)
    with pytest.raises(InvalidData, match="its outputs are score, logits"):
        intake(tmp_path, arrays(), IntakeData(inputs=[IMAGE], outputs=both, metric="accuracy:mask"))


def test_too_few_samples(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="at least 10"):
        intake(tmp_path, arrays(5))


def test_a_test_file_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="The test file has 'image' as"):
        intake(tmp_path, arrays(), IntakeData(), arrays(20, image=np.ones((20, 2), np.float32)))


def entry(shape: str, content: bytes, descr: str = "'<f4'") -> bytes:
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header = header + b" " * (63 - (10 + len(header)) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + content


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (entry("(10, 1, 4, 4)", bytes(4)), "another number of bytes"),
        (entry("(1 << 60,)", bytes(4)), "unreadable"),
        (entry("(1152921504606846976,)", bytes(4)), "another number of bytes"),
        (entry("(-4, -1)", bytes(16)), "another number of bytes|unreadable"),
        (entry("(2,)", bytes(16), "'|O'"), "never unpickled"),
        (entry("(2,)", bytes(16), "[('a', '<f4'), ('b', '<f4')]"), "dtype"),
        (b"\x93NUMPY\x01\x00\xff\xff{", "unreadable"),
        (b"hello", "unreadable"),
    ],
)
def test_headers_that_lie(content: bytes, says: str, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data", "w") as archive:
        archive.writestr("image.npy", content)
    with pytest.raises(InvalidData, match=says):
        check_and_split(tmp_path / "data", None, IntakeData(), tmp_path / "out")


def test_a_bomb(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", entry("(78643200,)", bytes(300 << 20)))
    with pytest.raises(InvalidData, match="zip bomb"):
        check_and_split(tmp_path / "data", None, IntakeData(), tmp_path / "out")


def test_not_an_npz(tmp_path: Path) -> None:
    np.save(tmp_path / "data.npy", np.ones(3))
    with pytest.raises(InvalidData, match="not a zip archive"):
        check_and_split(tmp_path / "data.npy", None, IntakeData(), tmp_path / "out")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_random_damage_is_refused_or_harmless(data: st.DataObject, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays(12))
    content = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[position] = data.draw(st.integers(0, 255))
        else:
            del content[position : position + data.draw(st.integers(1, 30))]
    (tmp_path / "damaged").write_bytes(bytes(content))
    try:
        check_and_split(tmp_path / "damaged", None, CLASSIFICATION, tmp_path / "out")
    except InvalidData as refusal:
        assert refusal.message.endswith(".")
