"""Builds for OpenVINO: its intermediate representation, from ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from fleetfit.compress.export.base import Exporter
from fleetfit.core.errors import InvalidModel
from fleetfit.runtimes.archive import pack
from fleetfit.runtimes.base import Availability
from fleetfit.runtimes.openvino import MEMBERS, OpenVino, import_openvino
from fleetfit.runtimes.refusal import lines, raise_memory

if TYPE_CHECKING:
    from fleetfit.compress.graph import LayeredModel


class OpenVinoExporter(Exporter):
    """Through the reader of the library itself; its converter would report what it is used for to its makers."""

    runtime: ClassVar[str] = "openvino"
    format: ClassVar[str] = "openvino"
    file: ClassVar[str] = "build.openvino"
    title: ClassVar[str] = "OpenVINO"
    packages: ClassVar[Sequence[str]] = ("openvino",)

    def availability(self) -> Availability:
        """Whether OpenVINO runs here."""
        return OpenVino().availability()

    def export(self, model: LayeredModel, onnx: bytes) -> bytes:
        """As it is read, with weights of the dtype they have: its `save_model` would halve them silently."""
        openvino = import_openvino()

        with tempfile.TemporaryDirectory() as folder:
            try:
                graph = openvino.Core().read_model(model=onnx)
                for number, node in enumerate(graph.get_ordered_ops()):
                    # What has no name of its own is numbered through the life of the process.
                    if node.get_type_name() not in ("Parameter", "Result"):
                        node.set_friendly_name(f"{node.get_type_name()}_{number}")
                openvino.serialize(graph, str(Path(folder, "model.xml")))
            except Exception as error:  # its exceptions have no common root
                raise_memory(error)
                raise InvalidModel(
                    f"the model cannot be expressed for OpenVINO: {lines(error)[-1]}; use another runtime"
                ) from error
            return pack({name: Path(folder, name).read_bytes() for name in MEMBERS})
