"""Export to TorchScript and ONNX: the traced detector, the writer, and comparison with it."""

from vild.export.detector import ExportableDetector

__all__ = ["ExportableDetector"]
