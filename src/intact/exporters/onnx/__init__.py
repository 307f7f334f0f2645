"""ONNX with QuantizeLinear and DequantizeLinear, for ONNX Runtime."""
