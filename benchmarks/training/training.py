"""Train the demo model: seeded, resumable, with a moving average of the weights.

The random numbers of a step depend on the seed and the number of the step alone, so a run that was
interrupted continues as if it had not been.
"""

from __future__ import annotations

import importlib.util
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError, safe_open
from torch import Tensor

from benchmarks.training.dataset import LatentClips, save_whole
from benchmarks.training.settings import Settings
from rainfusion_trt.demo.trained import clip_pipeline
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.models.base import VideoSize

_FORMAT = "rainfusion-demo-training-1"
_FETCH = 50  # steps between transfers of losses, each of which waits for the GPU


@dataclass(frozen=True)
class Batch:
    """Inputs of one training step.

    Attributes
    ----------
    latents : Tensor
        float32 [B, T, C, h, w].
    noise : Tensor
        The same shape.
    timesteps : Tensor
        int64 [B].
    prompts : Tensor
        Text embeddings [B, L, E].
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    prompts: Tensor


class Trainer:
    """A transformer on its way from random weights to the clips.

    Parameters
    ----------
    data : LatentClips
        The clips; they move to `device`.
    transformer : nn.Module
        CogVideoX transformer, float32; trained in place, in bfloat16 arithmetic on CUDA.
    size : VideoSize
        Size of the windows.
    settings : Settings
        See there.
    device : torch.device
        Device to train on.
    compiled : bool
        Whether steps run the transformer through ``torch.compile``. It shares the weights with
        `transformer`, which stays what is saved, averaged and sampled.

    Attributes
    ----------
    losses : list of float
        Losses of the steps done, up to the last `fetch_losses`.
    """

    def __init__(
        self,
        data: LatentClips,
        transformer: torch.nn.Module,
        size: VideoSize,
        settings: Settings,
        device: torch.device,
        *,
        compiled: bool = False,
    ) -> None:
        data.check(size)
        config: Any = transformer.config
        if compiled and device.type == "cuda" and importlib.util.find_spec("triton") is None:
            raise BackendUnavailableError(
                "compiling for CUDA needs Triton: pip install triton, or give --no-compile"
            )
        self.settings, self.size, self.device = settings, size, device
        self.data = data.to(device)
        self.transformer = transformer.to(device).train()
        # One graph: a break would cost speed without a word, so it is an error.
        self._forward = (
            torch.compile(transformer, dynamic=False, fullgraph=True) if compiled else transformer
        )
        pipe = clip_pipeline(transformer, data.codec).to(device)
        self.scheduler = pipe.scheduler
        with torch.no_grad():
            # The pipeline's own text path, so that a name means the same when sampling.
            self.prompts, _ = pipe.encode_prompt(
                [*data.names, ""],
                do_classifier_free_guidance=False,
                max_sequence_length=config.max_text_seq_length,
            )
        self.rotary = pipe._prepare_rotary_positional_embeddings(
            size.height, size.width, (size.frames - 1) // 4 + 1, device
        )
        self.parameters = list(transformer.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=settings.lr,
            betas=(0.9, 0.99),
            weight_decay=0.01,
            fused=device.type == "cuda",
        )
        self.average = EMAModel(self.parameters, decay=settings.ema, foreach=True)
        self.losses: list[float] = []
        self._pending: list[Tensor] = []  # losses still on the device

    @property
    def step(self) -> int:
        """Steps done."""
        return len(self.losses) + len(self._pending)

    def batch(self, step: int) -> Batch:
        """Inputs of a step."""
        settings = self.settings
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + step)
        windows = [self.data.draw(self.size, generator) for _ in range(settings.batch)]
        rows = torch.tensor([self.data.names.index(window.clip) for window in windows])
        dropped = torch.rand(settings.batch, generator=generator) < settings.unconditional
        rows[dropped] = len(self.data.names)
        # Stratified timesteps: a batch covers all of them, which steadies the loss.
        spread = torch.rand(settings.batch, generator=generator) + torch.arange(settings.batch)
        timesteps = (spread / settings.batch * len(self.scheduler)).long()
        latents = torch.stack([self.data.cut(window, self.size) for window in windows])
        noise_generator = torch.Generator(self.device).manual_seed(settings.seed * 1_000_003 + step)
        noise = torch.randn(latents.shape, generator=noise_generator, device=self.device)
        return Batch(latents, noise, self._sent(timesteps), self.prompts[self._sent(rows)])

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error of the predicted velocity (arXiv 2202.00512)."""
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)
        target = self.scheduler.get_velocity(batch.latents, batch.noise, batch.timesteps)
        with torch.autocast("cuda", torch.bfloat16, enabled=self.device.type == "cuda"):
            predicted = self._forward(
                hidden_states=noisy,
                encoder_hidden_states=batch.prompts,
                timestep=batch.timesteps,
                image_rotary_emb=self.rotary,
                return_dict=False,
            )[0]
        return F.mse_loss(predicted.float(), target)

    def train_step(self, batch: Batch) -> Tensor:
        """One optimiser step; its loss, a scalar on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate(self.step)
        loss = self.loss(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.average.step(self.parameters)
        self._pending.append(loss.detach())
        return self._pending[-1]

    def fetch_losses(self) -> None:
        """Bring the losses of the steps since the last call into `losses`.

        Raises
        ------
        InvalidInputError
            One of them is not finite, so the weights are spoilt.
        """
        if not self._pending:
            return
        values = torch.stack(self._pending).tolist()
        for step, value in enumerate(values, len(self.losses)):
            if not math.isfinite(value):
                raise InvalidInputError(
                    f"the loss of step {step} is {value}: start anew with less than "
                    f"lr={self.settings.lr}"
                )
        self.losses += values
        self._pending.clear()

    def run(
        self,
        checkpoint: Path,
        *,
        save_every: int = 1000,
        seconds: float = math.inf,
        report: Callable[[], None] = lambda: None,
    ) -> bool:
        """Train to the end, or for a time; a checkpoint is left either way.

        Parameters
        ----------
        checkpoint : Path
            File to write.
        save_every : int
            Steps between checkpoints.
        seconds : float
            Time after which no further step starts.
        report : callable
            Called whenever losses have been fetched.

        Returns
        -------
        bool
            Whether all steps are done.
        """
        start = time.monotonic()
        while self.step < self.settings.steps and time.monotonic() - start < seconds:
            self.train_step(self.batch(self.step))
            if self.step % _FETCH == 0:
                self.fetch_losses()
                report()
            if self.step % save_every == 0:
                self.save(checkpoint)
        self.save(checkpoint)
        return self.step >= self.settings.steps

    def save(self, path: Path) -> None:
        """Write everything that `resume` needs as one safetensors file, unless the run diverged."""
        self.fetch_losses()
        tensors = {"losses": torch.tensor(self.losses, dtype=torch.float64)}
        for index, parameter in enumerate(self.parameters):
            tensors[f"weights.{index}"] = parameter.detach()
            tensors[f"average.{index}"] = self.average.shadow_params[index]
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items()}
        metadata = {"format": _FORMAT, "run": self._identity()}
        save_whole({k: v.contiguous() for k, v in tensors.items()}, path, metadata)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        InvalidInputError
            The file cannot be read, or belongs to a run with other settings, model or size.
        """
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise InvalidInputError(f"checkpoint {path} cannot be read: {error}") from error
        if metadata.get("format") != _FORMAT or metadata["run"] != self._identity():
            raise InvalidInputError(
                f"checkpoint {path} is of the run {metadata.get('run')}, this one is "
                f"{self._identity()}: give the same options, or another --output"
            )
        self.losses = tensors["losses"].tolist()
        self._pending.clear()
        state: dict[int, dict[str, Tensor]] = {}
        with torch.no_grad():
            for index, parameter in enumerate(self.parameters):
                parameter.copy_(tensors[f"weights.{index}"])
                self.average.shadow_params[index].copy_(tensors[f"average.{index}"])
        for name, value in tensors.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, key = rest.partition(".")
                state.setdefault(int(index), {})[key] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        self.average.optimization_step = self.step

    def averaged(self) -> torch.nn.Module:
        """The transformer with the averaged weights, in evaluation mode; training is over then."""
        self.average.copy_to(self.parameters)
        return self.transformer.eval().requires_grad_(False)

    def _sent(self, values: Tensor) -> Tensor:
        """To the device; from pinned memory, because a copy from any other waits for the GPU."""
        if self.device.type != "cuda":
            return values.to(self.device)
        return values.pin_memory().to(self.device, non_blocking=True)

    def _identity(self) -> str:
        config: Any = self.transformer.config
        identity = {
            "settings": asdict(self.settings),
            "size": asdict(self.size),
            "clips": self.data.names,
            "transformer": {k: v for k, v in config.items() if not k.startswith("_")},
        }
        return json.dumps(identity, sort_keys=True)
