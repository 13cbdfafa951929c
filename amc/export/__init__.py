"""Export: a traced, compressed network becomes an ONNX or TFLite file, in floats or in int8."""

from amc.export.check import Agreement, check_export
from amc.export.exporter import Exported, export_onnx
from amc.export.tflite import export_tflite

__all__ = ["Agreement", "Exported", "check_export", "export_onnx", "export_tflite"]
