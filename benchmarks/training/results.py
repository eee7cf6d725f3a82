"""Write the results of a training run: pipeline, samples, their PSNR, loss curve."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.training.dataset import save_whole
from benchmarks.training.nearest import nearest_window
from benchmarks.training.training import Trainer
from rainfusion_trt.demo.sampling import sample_latents
from rainfusion_trt.demo.trained import clip_pipeline
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.files.place import check_folder
from rainfusion_trt.files.staging import staging
from rainfusion_trt.hashing import file_sha256

logger = logging.getLogger(__name__)

_MANIFEST = "rainfusion.json"  # in a saved pipeline: what it was saved with


@dataclass(frozen=True)
class Sampling:
    """Settings of the samples.

    Attributes
    ----------
    steps : int
        Denoising steps.
    guidance : float
        Classifier-free guidance; 1 is none.
    count : int
        Samples of every prompt, whose seeds follow that of the run.
    """

    steps: int
    guidance: float
    count: int


def write_results(trainer: Trainer, output: Path, sampling: Sampling) -> None:
    """The pipeline with averaged weights in half precision, its samples and their PSNR.

    The trainer's weights become the averaged ones: save a checkpoint before.
    """
    logger.info("results of %d of %d steps, to %s", trainer.step, trainer.settings.steps, output)
    codec = trainer.data.codec
    # Half precision is what ships, so it is what samples where the device computes in it.
    dtype = torch.float16 if trainer.device.type == "cuda" else torch.float32
    transformer = trainer.averaged().half()
    pipe = clip_pipeline(transformer, codec)
    save_folder(pipe, output / "pipeline")
    pipe.transformer.to(dtype)
    pipe.text_encoder.to(dtype)  # the latents take its dtype; the codec stays in float32
    pipe.to(trainer.device)
    pipe.set_progress_bar_config(disable=True)
    samples, rows = {}, []
    for name in trainer.data.names:
        for seed in range(trainer.settings.seed, trainer.settings.seed + sampling.count):
            latents = sample_latents(
                pipe,
                name,
                trainer.size,
                steps=sampling.steps,
                seed=seed,
                guidance=sampling.guidance,
            )
            rows.append({"prompt": name, "seed": seed} | _nearest(latents, name, trainer))
            samples[f"{name}-{seed}"] = latents.half().cpu().contiguous()
    save_whole(samples, output / "samples.safetensors", {"size": str(trainer.size)})
    report = {
        "settings": asdict(trainer.settings),
        "steps_done": trainer.step,
        "steps_planned": trainer.settings.steps,
        "sampling": asdict(sampling) | {"dtype": str(dtype)},
        "torch": torch.__version__,
        "samples": rows,
    }
    write_json(report, output / "report.json")


def _nearest(latents: Tensor, name: str, trainer: Trainer) -> dict[str, Any]:
    """The nearest window of all clips and of the one asked for, as the report holds them."""
    found = {
        "of_all_clips": nearest_window(latents, trainer.data, trainer.size),
        "of_its_clip": nearest_window(latents, trainer.data, trainer.size, clip=name),
    }
    for where, nearest in found.items():
        logger.info(
            "%s, nearest %s: %.1f dB (mean colour %.1f dB), %s",
            name,
            where.replace("_", " "),
            nearest.psnr,
            nearest.mean_psnr,
            nearest.window,
        )
    return {key: asdict(value) for key, value in found.items()}


def write_curve(trainer: Trainer, output: Path) -> None:
    """loss.json, and loss.png where matplotlib is installed."""
    write_json({"settings": asdict(trainer.settings), "loss": trainer.losses}, output / "loss.json")
    if not trainer.losses:
        return
    try:
        from matplotlib.figure import Figure
    except ImportError:
        logger.info("no loss.png: matplotlib is not installed")
        return
    window = max(1, trainer.step // 100)
    losses = torch.tensor(trainer.losses).unfold(0, window, window).mean(1)
    axes = (figure := Figure(figsize=(6, 4), layout="constrained")).subplots()
    axes.semilogy((torch.arange(len(losses)) + 1) * window, losses)
    axes.set_xlabel("step")
    axes.set_ylabel("mean squared error of the velocity")
    figure.savefig(output / "loss.png", dpi=150)


def write_json(value: dict[str, Any], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


def check_pipeline(folder: Path) -> None:
    """Refuse a folder to which no pipeline can be saved, or that holds anything but an earlier one.

    Raises
    ------
    InvalidInputError
        The message names the folder.
    """
    check_folder(folder)
    if not folder.exists() or not any(folder.iterdir()):
        return
    try:
        known = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if known != {_MANIFEST: "", **_hashes(folder)}:
        raise InvalidInputError(
            f"{folder} exists, and is not as a training run has saved it: move it away, or choose "
            "another --output"
        )


def save_folder(pipe: Any, folder: Path) -> None:
    """`save_pretrained` into another folder that takes the name when it is complete."""
    with staging(folder) as stage:
        fresh = stage.new / folder.name
        pipe.save_pretrained(fresh)
        write_json({_MANIFEST: "", **_hashes(fresh)}, fresh / _MANIFEST)
        check_pipeline(folder)
        stage.publish()


def _hashes(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {name: file_sha256(path) for name, path in names.items() if name != _MANIFEST}
