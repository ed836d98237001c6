"""Builds for runtimes other than ONNX Runtime, each proven against PyTorch before it is used."""
