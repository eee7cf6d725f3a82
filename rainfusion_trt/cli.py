"""Command line: ``rainfusion-trt export | build-plugin | build-engine | run | info``."""

from __future__ import annotations

import logging
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.export.cli import main as export

_REPORT = (
    "This is a bug of rainfusion-trt or of a library that it uses: please report it with the lines "
    "above."
)


class _ErrorsInOneLine(TyperGroup):
    """Prints errors that a user can mend as one line and ends with status 2.

    Others show their traceback, with the request to report it.
    """

    def invoke(self, ctx: Any) -> Any:  # a click.Context, typer's own or the package's
        try:
            return super().invoke(ctx)
        except Exception as error:
            line = _in_one_line(error)
            if line is None:
                # Exits and usage errors are typer's own business; some releases bring their click.
                if type(error).__module__.split(".")[0] in ("typer", "click"):
                    raise
                typer.echo("".join(traceback.format_exception(error)) + _REPORT, err=True)
                raise typer.Exit(1) from error
            typer.secho("error: ", fg="red", err=True, nl=False)
            typer.echo(" ".join(line.split()), err=True)
            raise typer.Exit(2) from error


def _in_one_line(error: Exception) -> str | None:
    """What to say of an error that a user can mend; None for all others."""
    if isinstance(error, RainFusionError):
        return str(error)
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):  # of files, disks and networks, also of the hub's client
        return f"{error.filename}: {error.strerror}" if error.filename else str(error)
    if type(error).__name__ in ("OutOfMemoryError", "MemoryError"):
        return (
            f"out of memory ({str(error).splitlines()[0] if str(error) else 'on the host'}): ask "
            "for a smaller clip, or try --cpu-offload and --vae-tiling"
        )
    return None


app = typer.Typer(
    cls=_ErrorsInOneLine,
    help="RainFusion block-sparse attention for video diffusion transformers in TensorRT.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.callback()
def main(
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Also log details.")] = False,
) -> None:
    """Set up logging for every command."""
    from rich.console import Console
    from rich.logging import RichHandler

    handler = RichHandler(console=Console(stderr=True), show_path=False, show_time=False)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler])
    logging.getLogger("rainfusion_trt").setLevel(logging.DEBUG if verbose else logging.INFO)


app.command("export")(export)


@app.command()
def build_plugin(
    output: Annotated[
        Path | None,
        typer.Option(help="Library (default: build/librainfusion_trt.so in a checkout)."),
    ] = None,
    arch: Annotated[
        list[str] | None,
        typer.Option(help="Such as 80 or 90, repeatable (default: this machine's GPUs, else all)."),
    ] = None,
    jobs: Annotated[int | None, typer.Option(help="Parallel compilations.", min=1)] = None,
    force: Annotated[bool, typer.Option(help="Build even if nothing has changed.")] = False,
) -> None:
    """Build librainfusion_trt.so, the TensorRT plugin and the kernels."""
    from rainfusion_trt.plugin.build import build_plugin

    typer.echo(build_plugin(output=output, architectures=arch, jobs=jobs, force=force))


@app.command()
def build_engine(
    onnx: Annotated[Path, typer.Argument(help="Model written by rainfusion-trt export.")],
    recipe: Annotated[
        Path,
        typer.Option(
            "--recipe",
            "--profile",
            metavar="NAME|FILE",
            help="A YAML file, or a name such as cogvideox-5b.",
        ),
    ],
    plugin: Annotated[Path | None, typer.Option(help="Plugin library.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="Folder (default: MODEL.engine beside MODEL.onnx).")
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="native, or sm80, sm120, ..., repeatable (default: the recipe's)."),
    ] = None,
    flavour: Annotated[
        str | None, typer.Option(help="tensorrt or tensorrt_rtx (default: what is installed).")
    ] = None,
    force: Annotated[bool, typer.Option(help="Build even if nothing has changed.")] = False,
) -> None:
    """Build a TensorRT engine from an exported model."""
    from rainfusion_trt.engine import build_engine

    chosen = target[0] if target and len(target) == 1 and target[0] == "native" else target
    typer.echo(
        build_engine(
            onnx,
            recipe=recipe,
            plugin=plugin,
            output=output,
            target=chosen or None,
            flavour=flavour,
            force=force,
        )
    )


@app.command()
def run(
    prompt: Annotated[str, typer.Option(help="What the video shows.")],
    checkpoint: Annotated[
        str, typer.Option(help="Diffusers directory or hub id: text encoder, VAE, scheduler.")
    ],
    output: Annotated[Path, typer.Option(help="The mp4 file.")] = Path("out/video.mp4"),
    model: Annotated[
        str | None, typer.Option(help="Such as cogvideox (default: engine's).")
    ] = None,
    engine: Annotated[Path | None, typer.Option(help="Folder of build-engine.")] = None,
    onnx: Annotated[Path | None, typer.Option(help="Exported model, for ONNX Runtime.")] = None,
    engine_2: Annotated[Path | None, typer.Option(help="Of the second transformer.")] = None,
    onnx_2: Annotated[Path | None, typer.Option(help="Of the second transformer.")] = None,
    backend: Annotated[
        str, typer.Option(help="auto, tensorrt, tensorrt_rtx, onnxruntime or torch.")
    ] = "auto",
    negative_prompt: Annotated[str | None, typer.Option(help="What it does not show.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps (default: model's).")] = None,
    guidance: Annotated[
        float | None, typer.Option(help="Guidance scale (default: model's).")
    ] = None,
    frames: Annotated[int | None, typer.Option(help="Frames (default: engine's).")] = None,
    height: Annotated[int | None, typer.Option(help="Pixels (default: engine's).")] = None,
    width: Annotated[int | None, typer.Option(help="Pixels (default: engine's).")] = None,
    sparsity: Annotated[float, typer.Option(help="Share of pairs left out; 0 is dense.")] = 0.5,
    dense_fraction: Annotated[float, typer.Option(help="Share of first steps kept dense.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Seed of the noise.")] = 0,
    fps: Annotated[int | None, typer.Option(help="Frames per second (default: model's).")] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace the file even if this command has not written it.")
    ] = False,
    device: Annotated[str | None, typer.Option(help="cuda or cpu (default: GPU if any).")] = None,
    cuda_graph: Annotated[bool, typer.Option(help="Replay the engine as a CUDA graph.")] = False,
    cpu_offload: Annotated[bool, typer.Option(help="Text encoder and VAE off the GPU.")] = False,
    vae_tiling: Annotated[bool, typer.Option(help="Decode in tiles: slower, less memory.")] = False,
    allow_fallback: Annotated[bool, typer.Option(help="Accept the next best backend.")] = False,
    allow_dense: Annotated[bool, typer.Option(help="Accept dense attention.")] = False,
    profile: Annotated[bool, typer.Option(help="Print the time of every step.")] = False,
) -> None:
    """Make a video from a text."""
    from rainfusion_trt.runtime.pipeline import Pipeline, PipelineOutput
    from rainfusion_trt.video import check_fps, check_target, save_video

    check_target(output, overwrite=overwrite)
    if fps is not None:
        check_fps(fps)
    with Pipeline(
        model,
        engine=engine,
        onnx=onnx,
        engine_2=engine_2,
        onnx_2=onnx_2,
        checkpoint=checkpoint,
        backend=backend,
        allow_fallback=allow_fallback,
        allow_dense=allow_dense,
        sparsity=sparsity,
        dense_fraction=dense_fraction,
        cuda_graph=cuda_graph,
        cpu_offload=cpu_offload,
        device=device,
    ) as pipeline:
        if vae_tiling:
            pipeline.pipe.vae.enable_tiling()
        result = pipeline(
            prompt,
            negative_prompt=negative_prompt,
            num_frames=frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance,
            seed=seed,
            profile=profile,
            output_type="np",
        )
        assert isinstance(result, PipelineOutput)  # as return_dict is True
        rate = pipeline.model.defaults.fps if fps is None else fps
        save_video(result.frames[0], output, fps=rate, overwrite=overwrite)
    if profile:
        _print_timings(result.timings)
    typer.echo(output)


@app.command()
def info(
    engine: Annotated[
        Path | None, typer.Option(help="Describe this engine folder instead.")
    ] = None,
) -> None:
    """Say what was found on this machine, what is missing, and how to get it."""
    from rich.console import Console
    from rich.table import Table

    from rainfusion_trt.environment import survey

    if engine is not None:
        _print_engine(engine)
        return

    table = Table(box=None)
    for title in ("part", "found", "otherwise"):
        table.add_column(title, overflow="fold")
    for row in survey():
        table.add_row(row.name, row.found or "no", "" if row.found else row.remedy)
    Console(markup=False).print(table)  # [cuda] is an extra


def _print_engine(folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from rainfusion_trt.engine import load_metadata

    found = load_metadata(folder)
    table = Table(box=None, show_header=False)
    rows = found.model_dump(
        include={"model", "component", "size", "precision", "flavour", "version", "device", "date"}
    )
    rows["targets"], rows["profiles"] = ", ".join(found.targets), ", ".join(found.profiles)
    settings = found.settings.record() if found.settings else {}
    rows |= {f"attention {key}": value for key, value in settings.items()}
    for lora in found.loras:
        rows[f"LoRA {lora.file}"] = f"scale {lora.scale:g}, sha256 {lora.sha256}"
    for name, value in rows.items():
        table.add_row(name, "" if value is None else str(value))
    Console().print(table)


def _print_timings(timings: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    for title in ("step", "sparsity", "transformer ms", "step ms"):
        table.add_column(title, justify="right")
    for row in timings:
        times = (f"{row.transformer_ms:.1f}", f"{row.total_ms:.1f}")
        table.add_row(str(row.step), f"{row.sparsity:g}", *times)
    Console(stderr=True).print(table)


if __name__ == "__main__":
    app()
