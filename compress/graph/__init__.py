"""The form in which a model is compressed: a plain graph of ordinary layers."""

from __future__ import annotations

from fleetfit.compress.graph.layered import LayeredModel

__all__ = ["LayeredModel"]
