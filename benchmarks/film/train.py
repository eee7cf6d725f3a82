"""Training by flow matching, for a given time, on several processes."""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from benchmarks.film.data import Shot
from benchmarks.film.latents import Latents
from benchmarks.film.model import TEXT_SIZE, Rotary, velocity
from benchmarks.film.scene import Scene

logger = logging.getLogger(__name__)
UNCONDITIONAL = 0.1


@dataclass(frozen=True)
class Stage:
    """One stage of training: latents, batch per process, seconds and learning rates."""

    name: str
    latents: Latents
    rotary: Rotary
    batch: int
    seconds: float
    rates: tuple[float, float]
    warm: int


def text_table(shots: int, scene: Scene, seed: int, device: torch.device) -> Tensor:
    """Random text [shots + 1, L, C]; the last row is zero and means no text."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(shots + 1, scene.text, TEXT_SIZE, generator=generator)
    table[-1] = 0
    return table.to(device)


class Trainer:
    """The model in training on one process.

    Parameters
    ----------
    shots
        One row of ``text`` each. Those shorter than the scene's frames are never drawn.
    most_steps
        Stop a stage after so many steps, whatever the time.
    """

    def __init__(
        self,
        model: nn.Module,
        scene: Scene,
        shots: Sequence[Shot],
        text: Tensor,
        seed: int,
        most_steps: int | None = None,
    ):
        self.device = text.device
        self.model = model
        self.frames = scene.grid[0]
        self.shots = shots
        self.starts = [max(0, len(shot) - self.frames + 1) for shot in shots]
        self.text = text
        self.most_steps = most_steps
        self.log: list[dict[str, float | str]] = []
        cuda = self.device.type == "cuda"
        ids = [self.device.index] if cuda else None
        self.parallel = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True)
        if cuda:
            for block in model.get_submodule("transformer_blocks").children():
                block.compile(dynamic=False)
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.01, fused=cuda
        )
        self.draws = random.Random(1000 * seed + dist.get_rank())
        torch.manual_seed(1000 * seed + dist.get_rank())

    def run(self, stage: Stage) -> None:
        """Train for the seconds of a stage."""
        begin = time.monotonic()
        finished = torch.zeros(1, device=self.device)
        step, loss = 0, torch.zeros(())
        while step != self.most_steps:
            share = (time.monotonic() - begin) / stage.seconds
            if step % 10 == 0:
                finished.fill_(float(share >= 1))
                dist.all_reduce(finished, op=dist.ReduceOp.MAX)
                if finished.item():
                    break
            for group in self.optimizer.param_groups:
                group["lr"] = _rate(stage, step, min(1.0, share))
            loss = self._step(stage)
            step += 1
            if step % 100 == 0:
                self._note(stage, step, loss)
        self._note(stage, step, loss)

    def _step(self, stage: Stage) -> Tensor:
        x, text = self._batch(stage)
        t = torch.sigmoid(1.2 * torch.randn(len(x), device=self.device) + 0.3)
        noise = torch.randn_like(x)
        mix = t.view(-1, 1, 1, 1, 1)
        cuda = self.device.type == "cuda"
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=cuda):
            noisy = (1 - mix) * x + mix * noise
            predicted = velocity(self.parallel, noisy, t, text, stage.rotary)
        loss = F.mse_loss(predicted.float(), noise - x)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        return loss.detach()

    def _batch(self, stage: Stage) -> tuple[Tensor, Tensor]:
        starts = self.starts
        picked = self.draws.choices(range(len(self.shots)), weights=starts, k=stage.batch)
        clips, rows = [], []
        for number in picked:
            begin = self.shots[number].start + self.draws.randrange(starts[number])
            clip = stage.latents.sequence(begin, self.frames)
            clips.append(clip.flip(-1) if self.draws.random() < 0.5 else clip)
            rows.append(-1 if self.draws.random() < UNCONDITIONAL else number)
        return torch.stack(clips), self.text[rows]

    def _note(self, stage: Stage, step: int, loss: Tensor) -> None:
        mean = loss.float().clone().to(self.device)
        dist.all_reduce(mean)
        value = round(float(mean) / dist.get_world_size(), 4)
        self.log.append({"stage": stage.name, "step": step, "loss": value})
        logger.info("%s, step %d: loss %.4f", stage.name, step, value)


def _rate(stage: Stage, step: int, share: float) -> float:
    """Linear warm-up of steps, then a cosine over the stage's time."""
    first, last = stage.rates
    cosine = last + (first - last) * 0.5 * (1 + math.cos(math.pi * share))
    return min(1.0, (step + 1) / stage.warm) * cosine
