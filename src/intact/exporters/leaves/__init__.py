"""Eager models with quantized layers in ONNX."""
