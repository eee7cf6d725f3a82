"""The trained model with what it was trained on, opened from its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import torch
import torch.distributed as dist
from torch import Tensor, nn

from benchmarks.film.autoencoder import Autoencoder, load_autoencoder
from benchmarks.film.data import Film, Shot, load_film, split_shots
from benchmarks.film.evaluate import Case, Evaluator, make_cases
from benchmarks.film.latents import Latents, make_latents
from benchmarks.film.model import Rotary, rotary_of
from benchmarks.film.pieces import load_pieces
from benchmarks.film.run import for_evaluation
from benchmarks.film.scene import SCENES, Scene
from benchmarks.film.train import text_table

REAL_CLIPS = 3  # of a shot of real footage, of which there is little


@dataclass(frozen=True)
class Source:
    """Latents of clips, and the shots of them that the model has not seen."""

    name: str
    latents: Latents
    shots: list[Shot]
    clips: int = 1

    def cases(self, scene: Scene, shots: int) -> list[Case]:
        """Some of the shots, at most ``clips`` clips of each, crossed with the times."""
        return make_cases(self.shots, scene.grid[0], shots, self.clips)


@dataclass(frozen=True)
class Bench:
    """A trained model and the clips that it is measured on.

    Attributes
    ----------
    prefix
        What names of result files begin with, so that those of other scenes lie apart.
    text
        One row for each shot that was trained on; the last row means no text.
    sources
        ``film``: its held-out shots; ``clips``: real footage, if a folder was given.
    """

    scene: Scene
    prefix: str
    seed: int
    model: nn.Module
    rotary: Rotary
    text: Tensor
    autoencoder: Autoencoder
    sources: list[Source]

    @property
    def device(self) -> torch.device:
        return self.text.device

    def evaluator(self, source: Source, shots: int) -> Evaluator:
        """The model on the cases of a source."""
        cases = source.cases(self.scene, shots)
        return Evaluator(
            self.model, self.scene, source.latents, self.rotary, self.text, cases, self.seed
        )


def open_bench(
    weights: Path,
    data: Path,
    clips: Path | None,
    device: torch.device,
    hold_out: int = 7,
    frames: int | None = None,
) -> Bench:
    """Read weights, film and clips.

    Parameters
    ----------
    weights
        Folder of the pieces that ``benchmarks.film --save-weights`` wrote.
    data
        The film that the model was trained on, and TAEF2.
    clips
        Real footage. It is normalised as the film was, since the model knows nothing else.
    hold_out, frames
        As in training, or the shots are others.
    """
    tensors, facts = load_pieces(weights, device)
    scene = SCENES[facts["scene"]][facts["dry"]]
    cv2.setNumThreads(2)
    autoencoder = load_autoencoder(data, device)
    film, values = _encoded(data, scene, autoencoder, device, frames)
    training, held = split_shots(film.shots, scene.usable, hold_out)
    known = facts["latents"]
    sources = [Source("film", Latents(values, known["mean"], known["deviation"]), held)]
    if clips is not None:
        real, values = _encoded(clips, scene, autoencoder, device, None)
        long = [shot for shot in real.shots if len(shot) >= scene.grid[0]]
        if not long:
            raise ValueError(f"no shot below {clips} has {scene.grid[0]} frames")
        latents = Latents(values, known["mean"], known["deviation"])
        sources.append(Source("clips", latents, long, REAL_CLIPS))
    model = for_evaluation(scene, tensors, device)
    text = text_table(len(training), scene, facts["seed"], device)
    rotary = rotary_of(scene, scene.grid, device)
    prefix = "" if facts["scene"] == "full" else f"{facts['scene']}_"
    return Bench(scene, prefix, facts["seed"], model, rotary, text, autoencoder, sources)


def _encoded(
    folder: Path, scene: Scene, autoencoder: Autoencoder, device: torch.device, frames: int | None
) -> tuple[Film, Tensor]:
    rank, world = dist.get_rank(), dist.get_world_size()
    film = load_film(folder, [scene.pixels(scene.grid)], rank, world, frames)
    return film, make_latents(autoencoder, film.pictures[0], film.frames, device).values
