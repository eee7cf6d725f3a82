"""The command line's options, one name each: type, spelling and help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rainfusion_trt.operator.settings import METHODS, TEXT_PLACES


class Config(str, Enum):
    """Which constructor arguments random weights are made for."""

    full = "full"
    tiny = "tiny"


Model = Annotated[
    str | None, typer.Option(help="Such as cogvideox-5b; a wrong name lists them all.")
]
Module = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MOD:FACTORY",
        help="Instead of --model: a function that gives (module, example keyword arguments).",
    ),
]
Grid = Annotated[str | None, typer.Option(metavar="T,H,W", help="Token grid, with --module.")]
TextPlace = Annotated[
    str,
    typer.Option(
        metavar=f"[{'|'.join(TEXT_PLACES)}]", help="Where its text tokens stand, with --module."
    ),
]
TextTokens = Annotated[int, typer.Option(help="How many they are, with --module.")]
KvLen = Annotated[
    str | None,
    typer.Option(help="Input that holds the valid tokens [B], instead of a mask, with --module."),
]
Attentions = Annotated[
    int | None, typer.Option(help="How many self-attentions there must be, with --module.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Directory of a diffusers pipeline or transformer, or a hub id."),
]
Component = Annotated[
    str | None,
    typer.Option(help="transformer or transformer_2, for models with two (wan2.2-a14b)."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE_OR_DIR[:SCALE]",
        help="LoRA to add to the weights before the export; may be given more than once.",
    ),
]
RandomWeights = Annotated[
    bool, typer.Option("--random-weights", help="Seeded random weights instead.")
]
NoWeights = Annotated[bool, typer.Option("--no-weights", help="Only the graph, in little memory.")]
Size = Annotated[Config, typer.Option(help="Size, without checkpoint.")]
Layers = Annotated[int | None, typer.Option(help="Depth, without checkpoint.")]
Seed = Annotated[int, typer.Option(help="For random weights.")]
Frames = Annotated[int | None, typer.Option(help="Pixel frames (default: model's).")]
Height = Annotated[int | None, typer.Option(help="Pixels (default: model's).")]
Width = Annotated[int | None, typer.Option(help="Pixels (default: model's).")]
Batch = Annotated[
    int | None,
    typer.Option(help="(default: as the model's pipeline calls it, with guidance)"),
]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp16 or fp32 (default: model's).")]
Dynamic = Annotated[
    bool, typer.Option("--dynamic/--fixed", help="One graph for many sizes, or for one.")
]
Method = Annotated[str, typer.Option(help=f"{', '.join(METHODS)}.")]
Alpha = Annotated[float, typer.Option(help="Recall from which a head has a kind.")]
SinkFrames = Annotated[int, typer.Option(help="Leading frames all tokens attend to.")]
Output = Annotated[
    Path | None, typer.Option(help="The .onnx file (default: named after the model).")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also run it in ONNX Runtime (fp32, CPU).")
]
Device = Annotated[str, typer.Option(help="cpu or cuda: where weights are made.")]
