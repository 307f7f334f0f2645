"""Files for runtimes, each checked against the runtime before it is handed over."""

from intact.exporters.c_export import export_c
from intact.exporters.certificate import Certificate
from intact.exporters.litert_export import export_litert
from intact.exporters.onnx_leaves import export_leaves
from intact.exporters.onnx_qdq import RUNTIMES, export_onnx, float_onnx
from intact.exporters.runtime import latencies

__all__ = ["RUNTIMES", "Certificate", "export_c", "export_leaves", "export_litert", "export_onnx", "float_onnx",
           "latencies"]
