"""Builds with smaller numbers, made from exported ONNX files: half floats, 8-bit integers, 4-bit weights."""

from fleetfit.compress.quantization.build import quantize_onnx

__all__ = ["quantize_onnx"]
