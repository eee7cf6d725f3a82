"""The command line's options, one name each: type, spelling and help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer


class Config(str, Enum):
    """Which constructor arguments random weights are made for."""

    full = "full"
    tiny = "tiny"


Model = Annotated[str, typer.Option(help="Such as cogvideox-5b; a wrong name lists them all.")]
Checkpoint = Annotated[
    str | None,
    typer.Option(help="Directory of a diffusers pipeline or transformer, or a hub id."),
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
Method = Annotated[
    str, typer.Option(help="rainfusion, rainfusion_two_way, rainfusion_plus, rainfusion2.")
]
Alpha = Annotated[float, typer.Option(help="Recall from which a head has a kind.")]
SinkFrames = Annotated[int, typer.Option(help="Leading frames all tokens attend to.")]
Output = Annotated[
    Path | None, typer.Option(help="The .onnx file (default: named after the model).")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Also run it in ONNX Runtime (fp32, CPU).")
]
Device = Annotated[str, typer.Option(help="cpu or cuda: where weights are made.")]
