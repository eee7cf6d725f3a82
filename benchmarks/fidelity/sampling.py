"""Sample videos of one pipeline from the same noise under different attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import rainfusion_trt
from benchmarks.fidelity.choice import Rule
from benchmarks.fidelity.configs import Config
from benchmarks.fidelity.trace import CaptureAttention, ReplaceAttention, Trace
from benchmarks.operator_calls import WatchOperator
from rainfusion_trt.demo.codec import FRAMES, PATCH, PatchCodec
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoSize
from rainfusion_trt.operator.geometry import BlockShape, TokenLayout, block_shape
from rainfusion_trt.runtime.schedule import SparsitySchedule, sparsity_per_step


@dataclass(frozen=True)
class Result:
    """One configuration over all seeds.

    Attributes
    ----------
    latents : Tensor
        [seeds, T, C, h, w] on the CPU.
    kinds : Tensor
        int8 [steps, layers, seeds, heads]; for rules that know no kinds their own codes.
    densities : Tensor
        float32 of the same shape, dense steps 1.
    dense_steps : int
        Number of dense steps at the start.
    """

    latents: Tensor
    kinds: Tensor
    densities: Tensor
    dense_steps: int

    @property
    def density(self) -> float:
        """Mean over heads, layers and steps, dense steps counted as 1."""
        return self.densities.double().mean().item()

    @property
    def sparse_density(self) -> float | None:
        """The same over the steps that the schedule does not make dense."""
        sparse = self.densities[self.dense_steps :]
        return sparse.double().mean().item() if len(sparse) else None


class Sampler:
    """A pipeline folder, and how its videos are sampled.

    Parameters
    ----------
    folder : Path
        The folder ``pipeline`` that scripts/train_demo.py writes.
    prompt : str
        The same for all seeds.
    seeds : sequence of int
        One video each, all in one batch; the noise is drawn on the CPU.
    steps : int
        Denoising steps.
    guidance : float
        Classifier-free guidance; 1 is none.
    device : torch.device
        CUDA runs in float16, the CPU in float32.
    size : VideoSize, optional
        By default what the transformer was trained for.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prompt: str,
        seeds: Sequence[int],
        steps: int,
        guidance: float,
        device: torch.device,
        size: VideoSize | None = None,
    ) -> None:
        from diffusers import CogVideoXPipeline

        if not (folder / "model_index.json").is_file():
            raise InvalidInputError(
                f"{folder} holds no diffusers pipeline: train one with scripts/train_demo.py"
            )
        dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.codec = PatchCodec.from_pretrained(folder / "vae")  # stays in float32
        self.pipe = CogVideoXPipeline.from_pretrained(folder, vae=self.codec, dtype=dtype)
        self.pipe.to(device)
        self.pipe.set_progress_bar_config(disable=True)
        self.folder, self.prompt, self.seeds = folder, prompt, tuple(seeds)
        self.steps, self.guidance, self.device = steps, guidance, device
        config = self.transformer.config
        self.size = size or VideoSize(
            config.sample_frames, config.sample_height * PATCH, config.sample_width * PATCH
        )

    @property
    def transformer(self) -> Any:
        return self.pipe.transformer

    def layout(self, sink_frames: int) -> TokenLayout:
        """Tokens of the joint sequence."""
        unit = PATCH * self.transformer.config.patch_size
        frames = (self.size.frames - 1) // FRAMES + 1
        grid = (frames, self.size.height // unit, self.size.width // unit)
        text = self.transformer.config.max_text_seq_length
        return TokenLayout(grid, grid[0] * grid[1] * grid[2] + text, "first", sink_frames)

    @property
    def block_shape(self) -> BlockShape:
        """The operator's at the transformer's head size."""
        return block_shape(self.transformer.config.attention_head_dim)

    def dense(self) -> Tensor:
        """Latents [seeds, T, C, h, w] with the transformer as it is, on the CPU."""
        return self._sample(lambda step: None)

    def operator(self, config: Config) -> Result:
        """A configuration of the operator, through `rainfusion_trt.enable`."""
        # Methods that a small clip leaves nothing to be sparse in are measured, too: every result
        # says its density.
        routing = rainfusion_trt.enable(
            self.transformer, allow_dense=True, **config.settings.record()
        )
        schedule, values = self._schedule(config)
        trace = Trace()

        def begin(step: int) -> None:
            routing.sparsity = values[step]

        try:
            with WatchOperator(lambda plan: trace.add(plan.kind, plan.density)):
                latents = self._sample(begin)
        finally:
            rainfusion_trt.disable(self.transformer)
        return self._result(latents, trace, schedule)

    def masked(self, config: Config, rule: Rule) -> Result:
        """A rule's masked attention."""
        schedule, values = self._schedule(config)
        trace = Trace()
        mode = ReplaceAttention(self.layout(config.sink_frames).tokens, rule, trace)

        def begin(step: int) -> None:
            mode.dense = values[step] == 0.0

        with mode:
            latents = self._sample(begin)
        return self._result(latents, trace, schedule)

    def capture(self, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """q, k and v [seeds, heads, S, D] of every layer at one step of the dense run."""
        if not 0 <= step < self.steps:
            raise InvalidInputError(f"step={step} must be in [0, {self.steps})")
        now = -1
        calls: list[tuple[Tensor, Tensor, Tensor]] = []

        def begin(current: int) -> None:
            nonlocal now
            now = current

        def receive(q: Tensor, k: Tensor, v: Tensor) -> None:
            if now == step:
                calls.append((q.contiguous(), k.contiguous(), v.contiguous()))

        with CaptureAttention(self.layout(0).tokens, receive):
            self._sample(begin)
        return calls

    def _schedule(self, config: Config) -> tuple[SparsitySchedule, tuple[float, ...]]:
        schedule = SparsitySchedule(config.sparsity, config.dense_fraction)
        return schedule, sparsity_per_step(schedule, self.steps)

    def _result(self, latents: Tensor, trace: Trace, schedule: SparsitySchedule) -> Result:
        kinds, densities = trace.kinds(self.steps), trace.densities(self.steps)
        return Result(latents, kinds, densities, schedule.dense_steps(self.steps))

    def _sample(self, begin: Callable[[int], None]) -> Tensor:
        with torch.inference_mode(), _at_every_call(self.transformer, begin):
            result = self.pipe(
                [self.prompt] * len(self.seeds),
                num_frames=self.size.frames,
                height=self.size.height,
                width=self.size.width,
                num_inference_steps=self.steps,
                guidance_scale=self.guidance,
                generator=[torch.Generator().manual_seed(seed) for seed in self.seeds],
                max_sequence_length=self.transformer.config.max_text_seq_length,
                output_type="latent",
            )
        latents = result.frames.cpu()
        if not latents.isfinite().all():
            raise InvalidInputError(f"{self.folder}: the videos hold values that are not numbers")
        return latents


@contextmanager
def _at_every_call(transformer: torch.nn.Module, begin: Callable[[int], None]) -> Iterator[None]:
    """Call `begin(0)`, `begin(1)`, ... before the forwards; guidance is one batch in CogVideoX."""
    step = 0

    def before(module: torch.nn.Module, args: tuple[Any, ...]) -> None:
        nonlocal step
        begin(step)
        step += 1

    handle = transformer.register_forward_pre_hook(before)
    try:
        yield
    finally:
        handle.remove()
