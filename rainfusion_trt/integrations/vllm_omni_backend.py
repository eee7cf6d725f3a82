"""The backend ``RAINFUSION_ATTN`` of vLLM-Omni on NVIDIA GPUs; needs vLLM-Omni to be imported.

On an NPU everything is vLLM-Omni's own. On CUDA the decision which forward is sparse is its own
too; only the sparse forward is ours.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.logger import init_logger
from vllm_omni.diffusion.attention.backends import rainfusion_attn as theirs
from vllm_omni.diffusion.attention.backends.abstract import AttentionMetadata
from vllm_omni.diffusion.forward_context import get_forward_context, is_forward_context_available
from vllm_omni.platforms import current_omni_platform

from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.integrations.vllm_omni import Segment, attention, settings_of_environment
from rainfusion_trt.operator.native import load_library
from rainfusion_trt.operator.sparse_grid import explain_obstacle, obstacle_to_sparsity

_log = init_logger(__name__)


class RainFusionBackend(theirs.RainFusionAttentionBackend):
    """vLLM-Omni's backend with a CUDA half."""

    supported_platforms: tuple[str, ...] = ("npu", "cuda")

    @classmethod
    def validate_available(cls) -> None:
        """See that the kernels are there before a model is built.

        Raises
        ------
        ValueError
            They are not; it says how to build them.
        """
        if not current_omni_platform.is_cuda():
            super().validate_available()
            return
        try:
            load_library()
        except RainFusionError as error:
            raise ValueError(f"RAINFUSION_ATTN: {error}") from error

    @staticmethod
    def get_impl_cls() -> type[RainFusionImpl]:
        """The class of a layer's attention."""
        return RainFusionImpl


class RainFusionImpl(theirs.RainFusionAttentionImpl):
    """Attention of one layer, [B, S, N, D].

    Raises
    ------
    InvalidInputError
        Of the configuration, on CUDA: a sparsity of 1, or a precision other than bf16.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not current_omni_platform.is_cuda():
            return
        config = self.rainfusion
        if config.sparsity >= 1.0:
            raise InvalidInputError(
                f"block_sparse.sparsity={config.sparsity:g} must be below 1 on CUDA"
            )
        if config.precision != "bf16":
            raise InvalidInputError(
                f"block_sparse.precision={config.precision!r} has no CUDA kernel; set it to 'bf16'"
            )
        self.settings = settings_of_environment(self.softmax_scale)

    def forward_cuda(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_metadata: AttentionMetadata | None = None,
    ) -> Tensor:
        """Sparse where vLLM-Omni's rules say so, else its dense attention, logged once.

        Raises
        ------
        InvalidInputError
            Tensors that are not the whole sequence of the video's layout.
        """
        plan = self._resolve_plan(attn_metadata)
        if plan is None:
            self._log_dense(attn_metadata)
            return self.dense_fallback.forward_cuda(query, key, value, attn_metadata)
        assert attn_metadata is not None
        segment = Segment.of(attn_metadata.video_layout, plan.used_len)
        if query.ndim != 4 or key.shape != query.shape or segment.used > query.shape[1]:
            raise InvalidInputError(
                f"query {tuple(query.shape)} and key {tuple(key.shape)} do not hold the "
                f"{segment.used} rows of the video layout as [B, S, N, D]; use Ulysses for "
                "sequence parallelism"
            )
        sparsity = self.rainfusion.sparsity
        obstacle = obstacle_to_sparsity(segment.grid, self.settings, query.shape[-1])
        if obstacle is not None:
            reason = explain_obstacle(obstacle, segment.grid, self.settings, sparsity)
            _log.warning_once("RAINFUSION_ATTN is dense: %s", reason)
        return attention(query, key, value, segment, sparsity, self.settings)

    def _log_dense(self, metadata: AttentionMetadata | None) -> None:
        """What vLLM-Omni decides without a word; what it warns of itself is not repeated."""
        config = self.rainfusion
        reason = None
        if not config.enabled:
            reason = "its sparsity is 0"
        elif self.layer_idx in config.skip_layers:
            reason = f"layer {self.layer_idx} is in skip_layers"
        elif self._is_exempt_step():
            reason = (
                f"start_step={config.start_step} and end_step={config.end_step} keep this "
                "denoising step dense"
            )
        elif self.qkv_layout is not None and metadata is None:
            reason = "a layer gives no attention metadata, as cross-attention"
        elif metadata is not None and metadata.video_layout is not None:
            if metadata.full_attn_spans is not None:
                reason = "a layer has full_attn_spans"
            elif metadata.attn_mask is not None:
                reason = "a layer has an attention mask that is not of padding alone"
        if reason is not None:
            _log.info_once("RAINFUSION_ATTN is dense: %s", reason)

    def _is_exempt_step(self) -> bool:
        config = self.rainfusion
        step = total = None
        if is_forward_context_available():
            context = get_forward_context()
            step, total = context.denoise_step_idx, context.total_denoise_steps
        if config.start_step and (step is None or step < config.start_step):
            return True
        return bool(config.end_step) and (
            step is None or total is None or step >= total - config.end_step
        )
