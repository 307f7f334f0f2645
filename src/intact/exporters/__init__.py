"""Files for runtimes, each checked against the runtime before it is handed over."""

from intact.exporters.c.export import export_c
from intact.exporters.certificate import Certificate
from intact.exporters.leaves.export import export_leaves
from intact.exporters.litert.export import export_litert
from intact.exporters.onnx.qdq import RUNTIMES, export_onnx, float_onnx
from intact.exporters.runtime import latencies

__all__ = ["RUNTIMES", "Certificate", "export_c", "export_leaves", "export_litert", "export_onnx", "float_onnx",
           "latencies"]
