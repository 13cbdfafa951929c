"""Export: a traced, compressed network becomes an ONNX file, in floats or in int8 (QDQ)."""

from amc.export.check import Agreement, check_export
from amc.export.exporter import Exported, export_onnx

__all__ = ["Agreement", "Exported", "check_export", "export_onnx"]
