"""Files for runtimes, each checked against the runtime before it is handed over."""

from intact.exporters.certificate import Certificate
from intact.exporters.onnx_qdq import export_onnx, float_onnx

__all__ = ["Certificate", "export_onnx", "float_onnx"]
