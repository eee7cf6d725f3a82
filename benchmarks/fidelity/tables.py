"""Make the tables of the studies in docs from benchmarks/results alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import mean

from benchmarks.fidelity.cells import (
    MAIN,
    NOTHING,
    Row,
    find,
    kind_cells,
    markdown,
    run_cells,
    sparsities,
)
from benchmarks.fidelity.configs import (
    ABLATIONS,
    ALPHAS,
    BASELINES,
    CONTRACT,
    DENSE_FRACTIONS,
    MAIN_SPARSITY,
)
from benchmarks.fidelity.confirmed import confirmed
from benchmarks.fidelity.instrument import block_times, read_records, sections
from benchmarks.fidelity.methods import METHODS

RECORDS = ("fidelity", "fidelity_confirm", "fidelity_tensors")
BLOCKS = "models_wan2.2-i2v-a14b"  # whose times stand beside caches


PICTURES = {
    "fidelity_frames.png": "Frames of one seed at s = 0.5, 10 % of the steps dense; baselines at "
    "the density of `rainfusion`",
    "fidelity_psnr.png": "PSNR against realised density",
    "fidelity_kinds.png": "The commonest kind, over the seeds, of every head in every step; no "
    "dense steps, s = 0.5",
    "fidelity_attention.png": "Attention of one head of each kind that occurs, averaged over cells "
    "of 16 x 16 pairs, and what the kind keeps of it",
}


def contents(folder: Path, images: Path) -> dict[str, dict[str, str]]:
    """The sections of every document, by its name: those of the study, and of the instrument.

    The study's say so where nothing was measured; of ``instrument.SECTIONS`` only those are there
    that have files.
    """
    records = {name: _read(folder / f"{name}.json") for name in RECORDS}
    study = {}
    for name, (source, make) in SECTIONS.items():
        record = records[source]
        study[name] = NOTHING if record is None else make(record)
    study["pictures"] = pictures(images)
    block = block_times(_read(folder / f"{BLOCKS}.json"))
    instrument = sections(read_records(folder / "fidelity"), block)
    return {"demo-study.md": study, "fidelity-tables.md": instrument}


def fill(text: str, wanted: Mapping[str, str]) -> str:
    """`text` with every section between its markers written anew.

    A section is what stands between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
    """
    for name, content in wanted.items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise SystemExit(f"the document needs {begin} and {end} once each, in this order")
        before, rest = text.split(begin)
        text = f"{before}{begin}\n\n{content}\n{end}{rest.split(end)[1]}"
    return text


def pictures(folder: Path) -> str:
    """The pictures that are there, each with what it shows."""
    shown = [
        f"{caption}:\n\n![{caption}](images/{name})\n"
        for name, caption in PICTURES.items()
        if (folder / name).is_file()
    ]
    return "\n".join(shown) or NOTHING


def setting(record: Row) -> str:
    """Device, date, command and versions of a file."""
    versions = ", ".join(f"{name} {version}" for name, version in record["versions"].items())
    return (
        f"{record['device']}, {record['date']}; {record['note']}.\n\nCommand: "
        f"`{record['command']}`. Versions: {versions}.\n"
    )


def verdict(record: Row) -> str:
    """The main figure beside its baselines."""
    main = find(record, "methods", "rainfusion", MAIN_SPARSITY)
    control = find(record, "control", "rainfusion", 0.0, dense_fraction=0.0)
    if main is None:
        return NOTHING
    lines = [
        f"* `rainfusion` at s = {MAIN_SPARSITY:g} with 10 % dense steps, {main['seeds']} seeds: "
        f"**{main['psnr']:.1f} dB** (worst seed {main['psnr_min']:.1f} dB), SSIM "
        f"{main['ssim']:.3f}, at a realised density of {main['density']:.3f} "
        f"(nominal {main['nominal_density']:.3f})."
    ]
    if control is not None:
        lines.append(
            f"* Dense attention through the operator instead of PyTorch's: {control['psnr']:.1f} "
            "dB. This is what arithmetic alone changes."
        )
    for method in BASELINES:
        row = find(record, "baselines", method, MAIN_SPARSITY)
        if row is not None:
            gain = main["psnr"] - row["psnr"]
            better = sum(
                a > b for a, b in zip(main["psnr_per_seed"], row["psnr_per_seed"], strict=True)
            )
            lines.append(
                f"* Against {method} at density {row['density']:.3f}: {gain:+.1f} dB in the mean, "
                f"better for {better} of {row['seeds']} seeds."
            )
    return "\n".join(lines) + "\n"


def methods(record: Row) -> str:
    """All methods at the default schedule."""
    rows = [find(record, "methods", m, s) for m in METHODS for s in sparsities(record)]
    return markdown([run_cells(row) | kind_cells(row) for row in rows if row is not None])


def sinks(record: Row) -> str:
    """With and without the first-frame sink."""
    table = []
    for method in METHODS:
        for s in sparsities(record):
            cells: Row = {"method": method, "s": f"{s:g}"}
            for sink, name in ((1, "with"), (0, "without")):
                row = find(record, "methods", method, s, sink_frames=sink)
                if row is not None:
                    cells[f"density {name}"] = f"{row['density']:.3f}"
                    cells[f"PSNR {name}"] = f"{row['psnr']:.2f}"
                    cells[f"SSIM {name}"] = f"{row['ssim']:.4f}"
            if len(cells) > 2:
                table.append(cells)
    return markdown(table)


def dense_steps(record: Row) -> str:
    """With 0, 10 and 25 % of the steps dense."""
    table = []
    for method in METHODS:
        for s in sparsities(record):
            cells: Row = {"method": method, "s": f"{s:g}"}
            for fraction in sorted(DENSE_FRACTIONS):
                row = find(record, "methods", method, s, dense_fraction=fraction)
                if row is not None:
                    cells[f"PSNR, {fraction:.0%} dense"] = f"{row['psnr']:.2f}"
                    cells[f"density, {fraction:.0%}"] = f"{row['density']:.3f}"
            if len(cells) > 2:
                table.append(cells)
    return markdown(table)


def ablations(record: Row) -> str:
    """Kinds taken away, as in the paper's Table 2; no textural heads is the two-way rule."""
    names = {"rainfusion": "all kinds", "rainfusion_two_way": "no textural (`rainfusion_two_way`)"}
    return _beside(record, names, "ablations", ABLATIONS)


def baselines(record: Row) -> str:
    """Other masks at the realised density of rainfusion."""
    return _beside(record, {"rainfusion": "rainfusion"}, "baselines", BASELINES)


def contract(record: Row) -> str:
    """Variants of the choices that the papers leave open."""
    masks = _beside(record, {"rainfusion": "as it is: half of the pairs"}, "contract", CONTRACT)
    rows = [
        find(
            record,
            "methods" if alpha == MAIN["alpha"] else "contract",
            "rainfusion",
            s,
            alpha=alpha,
        )
        for s in (MAIN_SPARSITY,)
        for alpha in sorted((*ALPHAS, MAIN["alpha"]))
    ]
    sweep = [
        {"alpha": f"{row['alpha']:g}"} | run_cells(row) | kind_cells(row)
        for row in rows
        if row is not None
    ]
    return f"{masks}\n{markdown(sweep)}"


def layers(record: Row) -> str:
    """Relative error of attention outputs, layer by layer, at the main sparsity."""
    rows = [row for row in record["rows"] if row["sparsity"] == MAIN_SPARSITY]
    wanted = ("methods", "ablations", "baselines", "contract", "arm")
    table = []
    for group, method in dict.fromkeys((row["group"], row["method"]) for row in rows):
        mine = [
            row
            for row in rows
            if (row["group"], row["method"]) == (group, method)
            and row.get("sink_frames") == MAIN["sink_frames"]
            and "relative_error" in row
        ]
        if group not in wanted or not mine:
            continue
        cells: Row = {"method": method, "density": f"{mean(r['density'] for r in mine):.3f}"}
        cells |= {f"layer {row['layer']}": f"{row['relative_error']:.3f}" for row in mine}
        cells["mean"] = f"{mean(r['relative_error'] for r in mine):.3f}"
        table.append(cells)
    return markdown(table)


def arm(record: Row) -> str:
    """ARM beside what it estimates."""
    table = []
    for layer in dict.fromkeys(row["layer"] for row in record["rows"]):
        rows = {row["method"]: row for row in record["rows"] if row["layer"] == layer}
        sample, best = rows["sample against all tokens"], rows["best kind"]
        check = rows["operator against masked attention"]
        cells: Row = {
            "layer": layer,
            "heads of the same kind with all tokens sampled": f"{sample['agreement']:.0%}",
        }
        for kind in ("temporal", "spatial"):
            here, there = sample[f"recall_{kind}"], sample[f"recall_{kind}_all"]
            cells[f"{kind} recall, sample"] = ", ".join(f"{value:.2f}" for value in here)
            cells[f"{kind} recall, all"] = ", ".join(f"{value:.2f}" for value in there)
        cells["heads of the kind with the least error"] = f"{best['agreement']:.0%}"
        cells["operator against masked attention"] = f"{check['relative_error']:.1e}"
        table.append(cells)
    return markdown(table)


SECTIONS: dict[str, tuple[str, Callable[[Row], str]]] = {
    "setting": ("fidelity", setting),
    "verdict": ("fidelity", verdict),
    "confirm-setting": ("fidelity_confirm", setting),
    "confirm": ("fidelity_confirm", confirmed),
    "methods": ("fidelity", methods),
    "baselines": ("fidelity", baselines),
    "ablations": ("fidelity", ablations),
    "sinks": ("fidelity", sinks),
    "dense-steps": ("fidelity", dense_steps),
    "contract": ("fidelity", contract),
    "tensors-setting": ("fidelity_tensors", setting),
    "layers": ("fidelity_tensors", layers),
    "arm": ("fidelity_tensors", arm),
}


def _read(path: Path) -> Row | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _beside(record: Row, own: dict[str, str], group: str, others: dict[str, str]) -> str:
    """The operator's methods and a group's, sparsity by sparsity."""
    table = []
    for s in sparsities(record):
        rows = [(find(record, "methods", method, s), name) for method, name in own.items()]
        rows += [(find(record, group, method, s), method) for method in others]
        table += [run_cells(row) | {"method": name} for row, name in rows if row is not None]
    return markdown(table)
