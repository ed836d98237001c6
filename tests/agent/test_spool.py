from __future__ import annotations

from pathlib import Path

from fleetfit.agent.spool import Spool


def _result(folder: Path, content: bytes = b"result") -> Path:
    path = folder / "result.pb.gz"
    path.write_bytes(content)
    return path


def test_a_result_outlives_the_process(tmp_path: Path) -> None:
    Spool(tmp_path / "spool").put("01ABC", 3, _result(tmp_path))
    (spooled,) = list(Spool(tmp_path / "spool"))
    assert (spooled.task_id, spooled.fence) == ("01ABC", 3)
    assert spooled.path.read_bytes() == b"result"


def test_what_was_acknowledged_is_gone(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.drop(spool.put("a", 1, _result(tmp_path)))
    assert list(spool) == []


def test_two_leases_of_one_task_are_two_results(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    spool.put("a", 1, _result(tmp_path, b"one"))
    spool.put("a", 2, _result(tmp_path, b"two"))
    assert [(s.fence, s.path.read_bytes()) for s in spool] == [(1, b"one"), (2, b"two")]


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir()
    (tmp_path / "spool" / "notes.txt").write_text("")
    assert list(Spool(tmp_path / "spool")) == []
