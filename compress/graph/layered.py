"""`LayeredModel`: what passes work on."""

from __future__ import annotations

import copy
import io
import itertools
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx

from fleetfit.compress.graph.counting import count_macs, parameters_of, recognised_share, weight_bytes_of
from fleetfit.compress.tasks import ModelFacts, Tensor
from fleetfit.core.errors import InvalidModel


@dataclass
class LayeredModel:
    """A model as a plain, trainable graph whose layers are ordinary modules.

    `module` is an `fx.GraphModule` with `nn.Conv2d`, `nn.Linear`, `nn.BatchNorm2d`, ... as leaves; what was not recognised is
    an ATen call. It takes the inputs by position, in the order of `inputs`, and returns one tensor, or a tuple of tensors in
    the order of `outputs`. Tied weights are one `nn.Parameter`.
    """

    module: fx.GraphModule
    inputs: list[Tensor]
    outputs: list[Tensor]
    sample_inputs: dict[str, torch.Tensor]
    dynamic_batch: bool
    """Whether any batch size may be given; if not, only that of the samples."""
    notes: list[str] = field(default_factory=list)
    sparse: set[str] = field(default_factory=set)
    """Names of parameters whose zeros are to stay when the model is trained (`KeptZeros`). A pass that fills such a parameter
    takes its name out; a name whose parameter is gone means nothing."""
    kept: dict[str, torch.Tensor] = field(default_factory=dict)
    """For batch norms that lost channels: which of those they came with are left, int64. Not stored with the model."""

    def call(self, arrays: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The outputs by name for inputs by name; gradients and training mode are the caller's choice."""
        missing = [tensor.name for tensor in self.inputs if tensor.name not in arrays]
        if missing:
            raise InvalidModel(f"The model takes {', '.join(t.name for t in self.inputs)}; {missing[0]} was not given.")
        return self.name_outputs(self.module(*(arrays[tensor.name] for tensor in self.inputs)))

    def name_outputs(self, result: torch.Tensor | Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
        """What `module` returned, by the outputs' names."""
        values = [result] if isinstance(result, torch.Tensor) else list(result)
        return dict(zip((tensor.name for tensor in self.outputs), values, strict=True))

    @property
    def device(self) -> torch.device:
        """Where the weights are, and so the inputs must be: the processor but for a pass that trains elsewhere."""
        tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def sample_batch(self) -> int:
        """The number of samples in `sample_inputs`."""
        return int(self.sample_inputs[self.inputs[0].name].shape[0])

    def parameters_count(self) -> int:
        """Trainable numbers; tied weights count once."""
        return sum(parameter.numel() for parameter in parameters_of(self.module))

    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers that the graph reads, as stored in memory; tied weights count once."""
        return weight_bytes_of(self.module)

    def macs(self) -> int:
        """Multiply-accumulates of convolutions and matrix products for one sample."""
        return count_macs(self)

    def recognised_share(self) -> float:
        """The share of parameters that belong to ordinary layers, 0 to 1; passes can work only on those."""
        return recognised_share(self.module)

    def clone(self) -> LayeredModel:
        """A deep copy; tied weights stay tied."""
        return LayeredModel(
            copy.deepcopy(self.module),
            list(self.inputs),
            list(self.outputs),
            {name: value.clone() for name, value in self.sample_inputs.items()},
            self.dynamic_batch,
            list(self.notes),
            set(self.sparse),
            dict(self.kept),
        )

    def facts(self) -> ModelFacts:
        """What intake reports."""
        return ModelFacts(
            inputs=self.inputs,
            outputs=self.outputs,
            parameters=self.parameters_count(),
            macs=self.macs(),
            recognised_share=self.recognised_share(),
            trainable=any(p.requires_grad and p.is_floating_point() for p in self.module.parameters()),
            notes=self.notes,
        )

    def exported(self) -> torch.export.ExportedProgram:
        """The model through `torch.export`, in evaluation mode, with a dynamic batch where `dynamic_batch`."""
        clone = copy.deepcopy(self.module).eval()
        samples = [self.sample_inputs[tensor.name] for tensor in self.inputs]
        # A batch of one would be taken for a constant.
        if self.dynamic_batch and self.sample_batch() == 1:
            samples = [torch.cat([sample, sample]) for sample in samples]
        shapes = None
        if self.dynamic_batch:
            batch = torch.export.Dim("batch")
            shapes = tuple({0: batch} for _ in samples)
        with warnings.catch_warnings():
            # Recurrent layers list their weights a second time; the tracer asks for buffers there.
            warnings.filterwarnings("ignore", message="The tensor attribute")
            return torch.export.export(clone, tuple(samples), dynamic_shapes=shapes)

    def save_pt2(self, path: Path) -> None:
        """Write the model as an archive that `load_pt2` reads, `sparse` included; the same model gives the same bytes."""
        present = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        facts = {
            "inputs": [tensor.name for tensor in self.inputs],
            "outputs": [tensor.name for tensor in self.outputs],
            "dynamic_batch": self.dynamic_batch,
            "notes": [],
            "sparse": sorted(self.sparse & present),
            "torch": torch.__version__,
        }
        # In memory first: PyTorch's writer aborts the process where a write fails, as on a full disk.
        buffer = io.BytesIO()
        torch.export.save(self.exported(), buffer, extra_files={"fleetfit.json": json.dumps(facts)})
        path.write_bytes(buffer.getbuffer())
