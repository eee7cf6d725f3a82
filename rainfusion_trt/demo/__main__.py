"""Exports a tiny model, builds plugin and engine, runs both attentions, writes an mp4.

python -m rainfusion_trt.demo [--output out]
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.logging import RichHandler

from rainfusion_trt.demo.components import demo_pipeline
from rainfusion_trt.demo.steps import build_demo_engine, export_once, run_pair
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.models import get_model
from rainfusion_trt.video import save_video, side_by_side

console = Console(stderr=True)


def main(
    output: Annotated[Path, typer.Option(help="Folder for everything the demo writes.")] = Path(
        "out"
    ),
    steps: Annotated[int, typer.Option(help="Denoising steps.", min=2)] = 10,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
) -> None:
    """Every step of the project, once."""
    handler = RichHandler(console=console, show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("rainfusion_trt").setLevel(logging.INFO)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec", FutureWarning)
    try:
        path = demo(output, steps, seed)
    except RainFusionError as error:
        console.print("[red]error:[/red]", str(error), soft_wrap=True, highlight=False)
        raise typer.Exit(2) from error
    console.print(f"\n[bold]{path}[/bold]: left dense, right RainFusion at sparsity 0.5.")
    console.print(
        "The weights are random, so the picture is noise: this shows that every part works, not "
        "what it looks like."
    )


def demo(output: Path, steps: int, seed: int) -> Path:
    """Run it; the path of the mp4."""
    from rainfusion_trt.build_plugin import build_plugin

    model = get_model("cogvideox")
    on_gpu = torch.cuda.is_available()
    console.rule("1. export to ONNX")
    pipe = demo_pipeline(model)
    half = export_once(model, pipe, output / "demo-fp16.onnx", torch.float16)
    console.rule("2. build the plugin")
    console.print(f"{build_plugin()}", highlight=False)
    console.rule("3. build the engine")
    engine = build_demo_engine(half)
    console.rule("4. run")
    frames: tuple[Any, Any]
    if on_gpu:
        frames = run_pair(
            {"pipe": pipe.to(torch.float16), "engine": engine, "allow_fallback": True},
            {"pipe": pipe, "engine": engine, "allow_fallback": True},
            steps=steps,
            seed=seed,
        )
    else:
        console.print(
            "No GPU, which engines need: dense attention runs in ONNX Runtime from an exported "
            "file, sparse attention in PyTorch's reference. Neither says anything about speed."
        )
        full = export_once(model, pipe, output / "demo-fp32.onnx", torch.float32)
        frames = run_pair(
            {"pipe": pipe, "onnx": full, "backend": "onnxruntime"},
            {"pipe": pipe, "backend": "torch"},
            steps=steps,
            seed=seed,
        )
    console.rule("5. write the video")
    return save_video(side_by_side(*frames), output / "demo.mp4", fps=model.defaults.fps)


if __name__ == "__main__":
    typer.run(main)
