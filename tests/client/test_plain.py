from __future__ import annotations

import json

from fleetfit.client.plain import enum_word, to_plain
from fleetfit.proto.v1 import common_pb2, devices_pb2, jobs_pb2, measurement_pb2


def test_numbers_stay_numbers_and_enums_become_words() -> None:
    device = devices_pb2.Device(
        name="pi", state=devices_pb2.DEVICE_STATE_ONLINE, enrolled_unix_ms=2**53 + 1, labels=["a"]
    )
    plain = to_plain(device)
    assert plain["enrolled_unix_ms"] == 2**53 + 1
    assert plain["state"] == "online"
    assert plain["labels"] == ["a"]
    json.dumps(plain)


def test_every_field_is_there_and_unset_optional_ones_are_null() -> None:
    plain = to_plain(jobs_pb2.Job(job_id="j", progress=common_pb2.Progress(fraction=0.5)))
    assert set(plain) == {field.name for field in jobs_pb2.Job.DESCRIPTOR.fields}
    assert plain["progress"]["remaining_ms"] is None
    assert plain["spec"] is None
    assert plain["reason"] == ""


def test_maps_are_dictionaries() -> None:
    assert to_plain(measurement_pb2.MeasurementResult(condition={"threads": "2"}))["condition"] == {"threads": "2"}


def test_an_enum_value_of_a_newer_server_is_its_number() -> None:
    assert enum_word(devices_pb2.DeviceState.DESCRIPTOR, 77) == "77"
    assert enum_word(jobs_pb2.JobState.DESCRIPTOR, jobs_pb2.JOB_STATE_DONE) == "done"
