"""Measuring one build on this device: an orchestrating child, and fresh children of its own that load the build."""

from __future__ import annotations

from typing import Final

OUTPUTS: Final = "outputs.npz"
"""Where the outputs lie in a task's folder that somebody else is to score."""
