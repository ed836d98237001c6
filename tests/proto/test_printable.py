from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fleetfit.proto.printable import make_printable, printable
from fleetfit.proto.v1 import measurement_pb2, snapshot_pb2

HOSTILE = "\x1b[2Jgone\x07\x9b31m"


@given(st.text())
def test_whatever_comes_no_control_character_stays(text: str) -> None:
    clean = printable(text)
    assert len(clean) == len(text)
    assert not any(ord(c) < 32 and c not in "\n\t" or 0x7F <= ord(c) < 0xA0 for c in clean)
    assert printable(clean) == clean


def test_ordinary_text_stays_as_it_is() -> None:
    text = "Raspberry Pi 5 Model B Rev 1.0\n\t47 °C, größer, 你好"
    assert printable(text) == text


def test_text_is_cleaned_at_any_depth() -> None:
    result = measurement_pb2.MeasurementResult(message=HOSTILE, notes=["fine", HOSTILE], condition={HOSTILE: HOSTILE})
    result.readings.add(governor=HOSTILE, load_1m=1.5)
    result.pairs.add().blocks.add(latency_ns=[1, 2])
    make_printable(result)
    assert "\x1b" not in str(result.SerializeToString()) and result.notes[0] == "fine"
    assert "\ufffd" in result.readings[0].governor and result.readings[0].load_1m == 1.5
    assert result.pairs[0].blocks[0].latency_ns == [1, 2]
    (key,) = result.condition
    assert key == result.condition[key] == printable(HOSTILE)


def test_a_snapshot_is_cleaned_in_its_parts() -> None:
    snapshot = snapshot_pb2.DeviceSnapshot(host_name=HOSTILE)
    snapshot.processor.flags.append(HOSTILE)
    snapshot.runtimes.add(reason=HOSTILE)
    make_printable(snapshot)
    told = (snapshot.host_name, snapshot.processor.flags[0], snapshot.runtimes[0].reason)
    assert set(told) == {printable(HOSTILE)}
