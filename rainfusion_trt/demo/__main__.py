"""Exports the trained demo model, builds plugin and engine, runs both attentions, writes an mp4.

python -m rainfusion_trt.demo [--output out] [--method rainfusion2]
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.logging import RichHandler

from rainfusion_trt.console import border, run_command
from rainfusion_trt.demo.captions import captioned
from rainfusion_trt.demo.sampling import psnr
from rainfusion_trt.demo.sheet import check_sheet, write_sheet
from rainfusion_trt.demo.steps import (
    Shot,
    build_demo_engine,
    check_outputs,
    export_once,
    model_file,
    on_cpu,
    run_pair,
)
from rainfusion_trt.demo.trained import TRAINED_PROMPT, TRAINED_SIZE, load_trained
from rainfusion_trt.models import get_model
from rainfusion_trt.operator.settings import METHODS, AttentionSettings
from rainfusion_trt.runtime.call_arguments import check_seed
from rainfusion_trt.runtime.schedule import check_sparsity
from rainfusion_trt.video import check_target, save_video, side_by_side

console = Console(stderr=True)
logger = logging.getLogger("rainfusion_trt.demo")


def main(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path(
        "out"
    ),
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=2)] = 30,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    sparsity: Annotated[float, typer.Option(help="Of the RainFusion half.")] = 0.5,
    method: Annotated[
        str, typer.Option(help=f"{', '.join(METHODS[:-1])} or {METHODS[-1]}.")
    ] = AttentionSettings.method,
) -> None:
    """Every step of the project, once: dense beside RainFusion from the same noise."""
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("rainfusion_trt").setLevel(logging.INFO)
    # diffusers remarks that the patch codec is not CogVideoX's VAE.
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec", FutureWarning)
    with border():
        check_sparsity(sparsity, "--sparsity")
        check_seed(seed)
        settings = AttentionSettings(method)  # type: ignore[arg-type]
        demo(output, Shot(TRAINED_PROMPT, TRAINED_SIZE, steps, seed, sparsity, settings))


def demo(output: Path, shot: Shot) -> None:
    """Run it; writes demo.mp4, demo.jpg and what leads to them."""
    from rainfusion_trt.plugin.build import build_plugin

    on_gpu = torch.cuda.is_available()
    check_target(output / "demo.mp4")
    check_sheet(output / "demo.jpg")
    check_outputs(output, on_gpu=on_gpu)
    model = get_model("cogvideox")
    console.rule("1. export to ONNX")
    pipe = load_trained(torch.float16 if on_gpu else torch.float32)
    half = export_once(model, pipe, model_file(output, torch.float16), torch.float16, shot)
    console.rule("2. build the plugin")
    console.print(f"{build_plugin()}", highlight=False)
    console.rule("3. build the engine")
    engine = build_demo_engine(half)
    console.rule("4. run")
    places: tuple[dict[str, Any], dict[str, Any]]
    if on_gpu:
        place = {"pipe": pipe, "engine": engine, "allow_fallback": True}
        places = (place, place)
    else:
        console.print(
            "No GPU, which engines need: dense attention runs in ONNX Runtime from an exported "
            "file, RainFusion in PyTorch's reference. Neither says anything about speed."
        )
        full = export_once(model, pipe, model_file(output, torch.float32), torch.float32, shot)
        places = on_cpu(pipe, full, shot)
    dense, sparse = run_pair(*places, shot)
    console.rule("5. write the video")
    _write(dense, sparse, output, shot, fps=model.defaults.fps)


def _write(dense: np.ndarray, sparse: np.ndarray, output: Path, shot: Shot, *, fps: int) -> None:
    method = shot.settings.method
    texts = ("dense", f"{method}, sparsity {shot.sparsity:g}")
    clips = [captioned(clip, text) for clip, text in zip((dense, sparse), texts, strict=True)]
    video = save_video(side_by_side(*clips), output / "demo.mp4", fps=fps)
    sheet = write_sheet(clips, output / "demo.jpg")
    logger.info("%s against dense: PSNR %.1f dB", method, frame_psnr(dense, sparse))
    console.print(
        f"\n[bold]{video}[/bold]: left dense, right {texts[1]}, from the same noise. {sheet}: some "
        "frames of both.",
        highlight=False,
    )


def frame_psnr(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR in dB of one clip against another, both floating in [0, 1], over all frames."""
    difference = 2.0 * (first.astype(np.float64) - second)  # psnr() is of pixels in [-1, 1]
    return psnr(float(np.square(difference).mean()))


if __name__ == "__main__":
    run_command(main)
