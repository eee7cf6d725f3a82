"""The PyTorch transformer in its pipeline, with RainFusion attention."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import torch
from torch import nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.models.transformer import as_transformer
from rainfusion_trt.operator.arguments import check_precision
from rainfusion_trt.operator.settings import AttentionSettings, Precision
from rainfusion_trt.runtime.denoiser import OneDenoiser
from rainfusion_trt.runtime.report import CallReport


class TorchDenoiser(OneDenoiser):
    """The diffusers transformer itself, its self-attention replaced by `enable`.

    With `compile`, its blocks go through torch.compile until `close`.
    """

    name = "torch"

    def __init__(
        self,
        transformer: nn.Module,
        model: VideoModel,
        settings: AttentionSettings,
        *,
        allow_dense: bool = False,
        compile: bool = False,
    ) -> None:
        from rainfusion_trt.routing import compile_blocks, enable
        from rainfusion_trt.routing.density import DensityMeter

        if settings.precision == "8bit":
            _check_eight_bit(transformer, model)
            self.precisions = ("16bit", "8bit")
        self.component = transformer
        self._attentions = model.attention_count(as_transformer(transformer).config)
        self._handle = enable(
            transformer,
            sparsity=0.0,
            model=model.name,
            allow_dense=allow_dense,
            **settings.record(),
        )
        self._compiled: tuple[nn.Module, ...] = ()
        try:
            self._meter = self._handle.meter = DensityMeter()
            if compile:
                self._compiled = compile_blocks(self._handle)
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> torch.device:  # type: ignore[override]  # it moves with the module
        return next(self.component.parameters()).device

    def set_sparsity(self, value: float) -> None:
        self._handle.sparsity = value

    def set_precision(self, value: Precision) -> None:
        super().set_precision(value)
        self._handle.precision = value

    @property
    def dense_layers(self) -> tuple[int, ...]:
        return self._handle.dense_layers

    def keep_dense(self, layers: Sequence[int]) -> None:
        self._handle.dense_layers = layers

    def report(self) -> CallReport:
        from rainfusion_trt.routing import routing_of

        if routing_of(self.component) is not self._handle:
            return CallReport(0, self._attentions)  # somebody called `disable`
        ran = self._handle.report()
        routed, dense, skipped = len(ran.routed), len(ran.dense), len(ran.skipped)
        precision = self._handle.precision
        if not routed or self._handle.by_tokens:
            return CallReport(routed, dense, skipped=skipped, precision=precision)
        density = self._meter.total / routed
        return CallReport(routed, dense, density, skipped, precision=precision)

    def describe(self) -> str:
        face = "kernels" if self.device.type == "cuda" else "reference, made to be read, not fast"
        how = f", {len(self._compiled)} compiled blocks" if self._compiled else ""
        return f"PyTorch {torch.__version__}, {type(self.component).__name__} ({face}{how})"

    def close(self) -> None:
        from rainfusion_trt.routing import disable, uncompile_blocks

        uncompile_blocks(self._compiled)

        with suppress(InvalidInputError):  # the user has done so
            disable(self.component)


def _check_eight_bit(transformer: nn.Module, model: VideoModel) -> None:
    """Refuse 8 bits for a head size or on a GPU that has none, before the first step."""
    check_precision("8bit", model.head_size(as_transformer(transformer).config))
    device = next(transformer.parameters()).device
    if device.type == "cuda":
        from rainfusion_trt.operator import native

        capability = torch.cuda.get_device_capability(device)
        native.load_library().check_precision(native.Precision.BITS_8, *capability)
