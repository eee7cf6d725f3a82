"""Export of diffusers transformers to ONNX, with attention as one operator."""

from rainfusion_trt._lazy import on_first_use

_EXPORTS = {
    "ExportReport": "exporter",
    "FusedLora": "lora",
    "GraphFacts": "check",
    "LoraFile": "lora_file",
    "check_model": "check",
    "export_model": "exporter",
    "export_module": "own_module",
    "fake_transformer": "weightless",
    "fuse_loras": "lora",
}

__all__ = list(_EXPORTS)  # noqa: PLE0605
__getattr__ = on_first_use(__name__, _EXPORTS)
