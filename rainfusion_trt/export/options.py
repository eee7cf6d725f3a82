"""The command line's options: one name each, with type, spelling and help."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from rainfusion_trt.operator.exact_frames import TEXT_FORM
from rainfusion_trt.operator.settings import EIGHT_BIT_GPUS, METHODS, PRECISIONS, TEXT_PLACES


class Config(str, Enum):
    """Size of a transformer that is built without a checkpoint."""

    full = "full"
    tiny = "tiny"


Model = Annotated[
    str | None, typer.Option(help="Model name, such as cogvideox-5b; a wrong name lists them all.")
]
Module = Annotated[
    str | None,
    typer.Option(
        metavar="PACKAGE.MOD:FACTORY",
        help="Export your own module: a function that returns (module, example arguments).",
    ),
]
Grid = Annotated[
    str | None,
    typer.Option(metavar="T,H,W|ARGUMENT", help="Token grid, for --module."),
]
TextPlace = Annotated[
    str,
    typer.Option(
        metavar=f"[{'|'.join(TEXT_PLACES)}]", help="Place of the text tokens, for --module."
    ),
]
TextTokens = Annotated[int, typer.Option(help="Number of text tokens, for --module.")]
KvLen = Annotated[
    str | None,
    typer.Option(
        help="Input with the number of valid tokens [B], in place of a mask, for --module."
    ),
]
Attentions = Annotated[
    int | None, typer.Option(help="Expected number of self-attentions, for --module.")
]
Checkpoint = Annotated[
    str | None,
    typer.Option(
        help="Directory of a diffusers pipeline or transformer, its hub id, or one .safetensors or "
        ".gguf file of the transformer."
    ),
]
Component = Annotated[
    str | None,
    typer.Option(help="transformer or transformer_2, for models with both (wan2.2-a14b)."),
]
Lora = Annotated[
    list[str] | None,
    typer.Option(
        metavar="FILE_OR_DIR[:SCALE]",
        help="LoRA to add to the weights before the export; may be repeated.",
    ),
]
RandomWeights = Annotated[bool, typer.Option("--random-weights", help="Use seeded random weights.")]
NoWeights = Annotated[
    bool, typer.Option("--no-weights", help="Export the graph alone, in little memory.")
]
Size = Annotated[Config, typer.Option(help="Size of the transformer, without --checkpoint.")]
Layers = Annotated[int | None, typer.Option(help="Number of layers, without --checkpoint.")]
Seed = Annotated[int, typer.Option(help="Seed of the random weights.")]
Frames = Annotated[int | None, typer.Option(help="Frames of the clip (default: the model's).")]
Height = Annotated[int | None, typer.Option(help="Height in pixels (default: the model's).")]
Width = Annotated[int | None, typer.Option(help="Width in pixels (default: the model's).")]
Batch = Annotated[
    int | None,
    typer.Option(help="Batch size (default: that of the model's pipeline with guidance)."),
]
Dtype = Annotated[str | None, typer.Option(help="bf16, fp16 or fp32 (default: the model's).")]
Dynamic = Annotated[
    bool, typer.Option("--dynamic/--fixed", help="One graph for many clip sizes, or for one.")
]
Parallel = Annotated[
    bool, typer.Option("--parallel", help="A graph whose clips several GPUs can share.")
]
Method = Annotated[str, typer.Option(help=f"One of {', '.join(METHODS)}.")]
Alpha = Annotated[
    float, typer.Option(help="Recall from which a head counts as spatial or temporal.")
]
SinkFrames = Annotated[int, typer.Option(help="Leading frames that all tokens attend to.")]
LastSinkFrames = Annotated[
    int, typer.Option(help="Frames at the end that all tokens attend to, for a last picture.")
]
ExactFrames = Annotated[
    list[str] | None,
    typer.Option(
        metavar=TEXT_FORM,
        help="Latent frames anywhere in the clip that are exact, for pictures in the middle; "
        "may be given several times.",
    ),
]
AttentionPrecision = Annotated[
    str,
    typer.Option(
        metavar=f"[{'|'.join(PRECISIONS)}]",
        help=f"Of attention's products; 8bit is for {EIGHT_BIT_GPUS}, and each step may still run "
        "in 16.",
    ),
]
Output = Annotated[
    Path | None, typer.Option(help="The .onnx file (default: named after the model).")
]
Compare = Annotated[
    bool, typer.Option("--compare", help="Compare the file in ONNX Runtime (fp32, CPU).")
]
Device = Annotated[str, typer.Option(help="Device for the weights: cpu or cuda.")]
