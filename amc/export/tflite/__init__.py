"""Export to TFLite: a traced, compressed network becomes a file for LiteRT, in floats, in int8 or mixed."""

from amc.export.tflite.exporter import export_tflite

__all__ = ["export_tflite"]
