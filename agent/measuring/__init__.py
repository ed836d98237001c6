"""Measuring one build on this device: an orchestrating child, and fresh children of its own that load the build."""
