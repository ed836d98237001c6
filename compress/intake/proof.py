"""Proof that a relayered model computes what the exported one does, on the sample inputs and on a second batch size."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from fleetfit.core.errors import InvalidModel

TOLERANCE = 1e-5
Run = Callable[[Sequence[torch.Tensor]], list[torch.Tensor]]


def second_batch(samples: Sequence[torch.Tensor], count: int) -> list[torch.Tensor]:
    """`count` samples made from the given ones: rows repeated in reverse, floating-point values scaled a little."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for sample in samples:
        rows = sample[(sample.shape[0] - 1 - torch.arange(count)) % sample.shape[0]]
        if rows.is_floating_point():
            # Values keep their sign and range: what a logarithm or an index takes stays valid.
            rows = rows * (1 - 0.1 * torch.rand(rows.shape, generator=generator)).to(rows.dtype)
        made.append(rows.contiguous())
    return made


def run_in_parts(run: Run, samples: Sequence[torch.Tensor], part: int) -> list[torch.Tensor]:
    """The outputs of a model that takes only `part` samples at once, for a multiple of `part` samples."""
    pieces = [
        run([sample[start : start + part] for sample in samples]) for start in range(0, samples[0].shape[0], part)
    ]
    return [torch.cat(list(outputs)) for outputs in zip(*pieces, strict=True)]


def check_deterministic(outputs: list[torch.Tensor], again: list[torch.Tensor], names: Sequence[str]) -> None:
    """Refuse a model whose outputs are not finite, or differ between two calls with the same inputs."""
    for name, first, second in zip(names, outputs, again, strict=True):
        if (first.is_floating_point() or first.is_complex()) and not bool(torch.isfinite(first).all()):
            raise InvalidModel(
                f"The model's output {name} holds NaN or infinity for its own sample inputs; export it with the trained "
                "weights and with realistic samples."
            )
        if first.shape != second.shape or difference(first, second) > TOLERANCE:
            raise InvalidModel(
                f"The model's output {name} differs between two calls with the same inputs; remove randomness from forward "
                "and call model.eval() before the export."
            )


def difference(expected: torch.Tensor, actual: torch.Tensor) -> float:
    """The largest difference, relative to the largest expected value where that is above 1; infinity for another form."""
    if expected.shape != actual.shape or expected.dtype != actual.dtype:
        return float("inf")
    if expected.numel() == 0:
        return 0.0
    if not expected.is_floating_point():
        return 0.0 if torch.equal(expected, actual) else float("inf")
    wide, other = expected.double(), actual.double()
    value = float((wide - other).abs().max()) / max(1.0, float(wide.abs().max()))
    # Half precision cannot be compared more finely than it counts.
    coarse = torch.finfo(expected.dtype).eps / torch.finfo(torch.float32).eps
    return (float("inf") if value != value else value) / max(1.0, coarse)


def largest_difference(expected: Sequence[torch.Tensor], actual: Sequence[torch.Tensor]) -> float:
    """The largest difference over all outputs."""
    return max((difference(a, b) for a, b in zip(expected, actual, strict=True)), default=0.0)
