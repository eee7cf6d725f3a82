"""Command line: ``rainfusion-trt``, with its commands."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Annotated

import typer

from rainfusion_trt.console import OneLineGroup, log_to_terminal, one_line
from rainfusion_trt.export.cli import main as export
from rainfusion_trt.runtime.cli import main as run
from rainfusion_trt.serve.cli import main as serve
from rainfusion_trt.step_cache.cli import main as calibrate_cache

_TABLE_WIDTH = 220  # columns that the list of models needs

app = typer.Typer(
    cls=OneLineGroup,
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
    log_to_terminal(logging.DEBUG if verbose else logging.INFO)


app.command("export")(export)
app.command("run")(run)
app.command("serve")(serve)
app.command("calibrate-cache")(calibrate_cache)


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
    gpus: Annotated[
        str | None,
        typer.Option(
            metavar="N|N-M",
            help="How many GPUs share a clip, for a model exported with --parallel (default: the "
            "recipe's, else 2-8).",
        ),
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
            gpus=gpus,
            force=force,
        )
    )


@app.command()
def models(
    as_json: Annotated[
        bool, typer.Option("--json", help="All there is to say, for programs.")
    ] = False,
) -> None:
    """List the models that are known by name, and what of each ran on a GPU.

    docs/models.md says what else was tested.
    """
    import dataclasses
    import json

    from rainfusion_trt.model_list import list_models

    rows = list(list_models())
    if as_json:
        typer.echo(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None)
    titles = ("model", "starts from", "usual clip", "video tokens", "head size", "layers", "recipe")
    for title in (*titles, "on a GPU"):
        table.add_column(title, no_wrap=True)
    table.add_column("pipelines of diffusers", overflow="fold")
    for row in rows:
        of_each = " x ".join(str(n) for n in (len(row.components), row.layers) if n > 1)
        table.add_row(
            "\n".join((row.name, *(f"  {alias}" for alias in row.aliases))),
            "\n".join(row.modes),
            row.size,
            f"{row.video_tokens:,}",
            str(row.head_size),
            of_each,
            row.recipe or "",
            row.on_gpu or "not run",
            "\n".join(row.pipelines),
        )
    console = Console(markup=False, highlight=False)
    console.width = max(console.width, _TABLE_WIDTH)
    console.print(table)


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
    if found.settings:  # a record leaves out 16 bits
        settings = {**found.settings.record(), "precision": found.settings.precision}
        rows |= {f"attention {key}": value for key, value in settings.items()}
    for lora in found.loras:
        rows[f"LoRA {lora.file}"] = f"scale {lora.scale:g}, sha256 {lora.sha256}"
    for name, value in rows.items():
        table.add_row(one_line(name), "" if value is None else one_line(str(value)))
    # What a file says is shown as it is: [/red] is no command of ours.
    Console(markup=False, highlight=False, emoji=False).print(table)


if __name__ == "__main__":
    app()
