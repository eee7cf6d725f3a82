"""Draw the pictures of docs/demo-study.md from the results' rows and small tensors."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator
from PIL import Image
from torch import Tensor

from benchmarks.fidelity.cells import MAIN
from benchmarks.fidelity.configs import BASELINES, DENSE_FRACTIONS, MAIN_SPARSITY
from benchmarks.fidelity.methods import METHODS
from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.sampling import decode_video
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.geometry import Kind

Row = dict[str, Any]
LIMIT = 300_000  # bytes of a picture in the repository
SHOWN = ("dense", "rainfusion", "rainfusion2", "svg", "window and sink", "random blocks")
KIND_COLOURS = {
    Kind.DENSE: "#444444",
    Kind.SPATIAL: "#3b76af",
    Kind.TEMPORAL: "#ee854a",
    Kind.TEXTURAL: "#6acc64",
    Kind.BLOCKS: "#956cb4",
    Kind.WINDOWS: "#8c613c",
}


def draw_all(
    rows: Sequence[Row],
    kept: Mapping[str, Tensor],
    maps: Mapping[str, Tensor],
    codec: PatchCodec,
    folder: Path,
) -> list[Path]:
    """Draw every picture there is data for; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    figures = {"fidelity_psnr.png": psnr_figure(rows)}
    if "dense" in kept:
        figures["fidelity_frames.png"] = frames_figure(rows, kept, codec)
    if "kinds" in kept:
        figures["fidelity_kinds.png"] = kinds_figure(kept["kinds"])
    if any(name.startswith("attention.") for name in maps):
        figures["fidelity_attention.png"] = attention_figure(maps)
    return [save_small(figure, folder / name) for name, figure in figures.items()]


def psnr_figure(rows: Sequence[Row]) -> Figure:
    """PSNR against realised density: methods and baselines; dense steps and sinks."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for method in (*METHODS, *BASELINES):
        line = _line(rows, **MAIN, method=method)
        look = {"marker": "o"} if method in METHODS else {"marker": "x", "linestyle": "--"}
        _plot(left, line, label=method, **look)
    left.set_title("the first 10 % of the steps dense, first frame a sink")
    left.set_ylabel("PSNR against dense, dB (mean over seeds)")
    for fraction in sorted(DENSE_FRACTIONS):
        for sink, style in ((1, "-"), (0, ":")):
            line = _line(
                rows,
                **{**MAIN, "dense_fraction": fraction, "sink_frames": sink},
                method="rainfusion",
            )
            label = f"{fraction:.0%} dense steps, {'first frame' if sink else 'no frame'} a sink"
            _plot(right, line, label=label, linestyle=style, marker="o")
    right.set_title("rainfusion")
    for axes in (left, right):
        axes.set_xlabel("share of pairs computed, dense steps counted as 1")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=7)
    return figure


def frames_figure(rows: Sequence[Row], kept: Mapping[str, Tensor], codec: PatchCodec) -> Figure:
    """First, middle and last frame of the first seed's video under dense and sparse attention."""
    names = [name for name in SHOWN if name in kept]
    videos = {name: decode_video(kept[name][0].float(), codec) for name in names}
    count = len(videos["dense"])
    chosen = (0, count // 2, count - 1)
    figure = Figure(figsize=(2.4 * len(names), 2.0 * len(chosen)), layout="constrained")
    grid = figure.subplots(len(chosen), len(names), squeeze=False)
    for column, name in enumerate(names):
        grid[0, column].set_title(_frame_title(rows, name), fontsize=8)
        for row, frame in enumerate(chosen):
            axes = grid[row, column]
            axes.imshow(videos[name][frame])
            axes.set_xticks([])
            axes.set_yticks([])
            if column == 0:
                axes.set_ylabel(f"frame {frame}", fontsize=8)
    return figure


def kinds_figure(counts: Tensor) -> Figure:
    """The commonest kind of every head over the steps; counts [steps, layers, heads, kinds]."""
    steps, layers, heads, _ = counts.shape
    table = counts.argmax(-1).flatten(1).T  # [layers * heads, steps]
    figure = Figure(figsize=(8, 1.2 + 0.16 * layers * heads), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([KIND_COLOURS[kind] for kind in Kind])
    axes.imshow(
        table.numpy(),
        cmap=colours,
        vmin=-0.5,
        vmax=len(Kind) - 0.5,
        aspect="auto",
        interpolation="nearest",
    )
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color="white", linewidth=2)
    axes.set_yticks([layer * heads + (heads - 1) / 2 for layer in range(layers)])
    axes.set_yticklabels([f"layer {layer}" for layer in range(layers)])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"denoising step, of {steps}")
    present = [kind for kind in Kind if (table == int(kind)).any()]
    figure.legend(
        handles=[Patch(color=KIND_COLOURS[kind], label=kind.name.lower()) for kind in present],
        loc="outside lower center",
        ncols=len(present),
        frameon=False,
    )
    return figure


def attention_figure(maps: Mapping[str, Tensor]) -> Figure:
    """Above the attention of one head of each kind, below what the kind keeps."""
    kinds = [k.name.lower() for k in Kind if f"attention.{k.name.lower()}" in maps]
    figure = Figure(figsize=(3.4 * len(kinds) + 0.8, 6.6), layout="constrained")
    grid = figure.subplots(2, len(kinds), squeeze=False)
    for column, kind in enumerate(kinds):
        attention = maps[f"attention.{kind}"].double()
        relative = (attention / attention.mean()).clamp(min=1e-2)
        layer, head = maps[f"head.{kind}"].tolist()
        above, below = grid[:, column]
        image = above.imshow(relative.numpy(), norm=LogNorm(1e-2, 1e2), cmap="magma")
        above.set_title(f"{kind}: layer {layer}, head {head}", fontsize=9)
        below.imshow(maps[f"kept.{kind}"].numpy(), vmin=0, vmax=1, cmap="gray_r")
        below.set_title(f"kept at s = {MAIN_SPARSITY:g}", fontsize=9)
        for axes in (above, below):
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_xlabel("keys", fontsize=8)
        grid[0, 0].set_ylabel("queries", fontsize=8)
    figure.colorbar(image, ax=grid[0], label="probability over its mean", shrink=0.8)
    return figure


def save_small(figure: Figure, path: Path, limit: int = LIMIT) -> Path:
    """Write a PNG of 256 colours, at the largest resolution that stays below the limit."""
    for dpi in (150, 125, 110, 100, 90, 80, 70, 60):
        whole = io.BytesIO()
        figure.savefig(whole, format="png", dpi=dpi)
        image = Image.open(whole).convert("RGB")
        small = io.BytesIO()
        image.quantize(256, dither=Image.Dither.NONE).save(small, "png", optimize=True)
        if small.tell() < limit:
            temporary = path.with_name(f".{path.name}.part")
            temporary.write_bytes(small.getvalue())
            temporary.replace(path)
            return path
    raise InvalidInputError(f"{path.name} does not fit into {limit} bytes")


def _line(rows: Sequence[Row], **wanted: Any) -> list[Row]:
    """Rows of a curve, by density."""
    groups = ("methods", "baselines")
    chosen = [
        row
        for row in rows
        if row["group"] in groups and all(row[key] == value for key, value in wanted.items())
    ]
    return sorted(chosen, key=lambda row: row["density"])


def _plot(axes: Axes, line: Sequence[Row], **style: Any) -> None:
    if line:
        axes.plot(
            [row["density"] for row in line], [row["psnr"] for row in line], markersize=4, **style
        )


def _frame_title(rows: Sequence[Row], name: str) -> str:
    if name == "dense":
        return "dense"
    row = _line(rows, **MAIN, method=name, sparsity=MAIN_SPARSITY)[0]
    return f"{name}\ndensity {row['density']:.2f}, {row['psnr_per_seed'][0]:.1f} dB"
