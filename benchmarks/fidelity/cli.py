"""Measure how much of the dense video sparse attention keeps, on the demo model.

    python scripts/fidelity.py study --pipeline out/trained/pipeline
    python scripts/fidelity.py confirm --pipeline out/trained/pipeline
    python scripts/fidelity.py tensors --pipeline out/trained/pipeline
    python scripts/fidelity.py pictures --pipeline out/trained/pipeline
    python scripts/fidelity.py tables

``study``, ``confirm`` and ``tensors`` should have a GPU; they write figures as JSON into
benchmarks/results and small tensors for pictures into out/fidelity. ``pictures`` and ``tables``
need none; they write docs/images and the tables of docs/demo-study.md and docs/fidelity-tables.md
from those files. Needs the extra ``study``.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import torch
import typer
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.fidelity.configs import SPARSITIES, Config, configs_of, confirming_configs
from benchmarks.record import RESULTS, write_result
from benchmarks.training.dataset import save_whole
from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.errors import InvalidInputError

if TYPE_CHECKING:
    from benchmarks.fidelity.sampling import Sampler

logger = logging.getLogger("rainfusion_trt.fidelity")
app = typer.Typer(add_completion=False, no_args_is_help=True, help=__doc__)
ROOT = Path(__file__).resolve().parents[2]

PipelineOption = Annotated[Path, typer.Option(help="Folder `pipeline` of train_demo.py.")]
ResultsOption = Annotated[Path, typer.Option(help="Folder of the JSON.")]
OutputOption = Annotated[Path, typer.Option(help="Folder of the small tensors for pictures.")]
PromptOption = Annotated[str, typer.Option(help="Name of the clip to sample.")]
StepsOption = Annotated[int, typer.Option(help="Denoising steps.", min=2)]
GuidanceOption = Annotated[float, typer.Option(help="Classifier-free guidance; 1 is none.")]
DeviceOption = Annotated[str | None, typer.Option(help="By default the GPU, if there is one.")]
WorkersOption = Annotated[int, typer.Option(help="Processes for PSNR and SSIM; 0: none.", min=0)]
MinutesOption = Annotated[float, typer.Option(help="Start no run after this long.")]
_WORKERS = min(12, max(1, (os.cpu_count() or 1) - 2))
_PIPELINE = Path("out/trained/pipeline")
_DEMO = ROOT / "rainfusion_trt/demo/bigbuckbunny"
_OUTPUT = Path("out/fidelity")


@app.command()
def study(
    pipeline: PipelineOption = _PIPELINE,
    results: ResultsOption = RESULTS,
    output: OutputOption = _OUTPUT,
    prompt: PromptOption = "bigbuckbunny",
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many, all in one batch.", min=1)] = 8,
    steps: StepsOption = 40,
    guidance: GuidanceOption = 1.0,
    sparsity: Annotated[list[float] | None, typer.Option(help="s; repeat for several.")] = None,
    group: Annotated[list[str] | None, typer.Option(help="Only these groups of runs.")] = None,
    workers: WorkersOption = _WORKERS,
    max_minutes: MinutesOption = 8.0,
    device: DeviceOption = None,
) -> None:
    """PSNR and SSIM of sparse videos against the dense ones of the same seeds."""
    configs = configs_of(tuple(sparsity or SPARSITIES), group or [])
    chosen = range(first_seed, first_seed + seeds)
    sampler = _sampler(pipeline, prompt, chosen, steps, guidance, device)
    kept = _run("fidelity", configs, sampler, workers, max_minutes, results)
    save_whole(kept, output / "fidelity.safetensors", {"prompt": prompt})


@app.command()
def confirm(
    pipeline: PipelineOption = _PIPELINE,
    results: ResultsOption = RESULTS,
    prompt: PromptOption = "bigbuckbunny",
    first_seed: Annotated[int, typer.Option(help="First seed, none of the study's.")] = 100,
    seeds: Annotated[int, typer.Option(help="How many, all in one batch.", min=2)] = 32,
    steps: StepsOption = 40,
    guidance: GuidanceOption = 1.0,
    workers: WorkersOption = _WORKERS,
    max_minutes: MinutesOption = 8.0,
    device: DeviceOption = None,
) -> None:
    """The main comparisons of `study` again, with more and other seeds."""
    chosen = range(first_seed, first_seed + seeds)
    sampler = _sampler(pipeline, prompt, chosen, steps, guidance, device)
    _run("fidelity_confirm", confirming_configs(), sampler, workers, max_minutes, results)


@app.command()
def tensors(
    pipeline: PipelineOption = _PIPELINE,
    results: ResultsOption = RESULTS,
    output: OutputOption = _OUTPUT,
    prompt: PromptOption = "bigbuckbunny",
    seed: Annotated[int, typer.Option(help="A seed that the study does not use.")] = 1000,
    steps: StepsOption = 40,
    step: Annotated[int | None, typer.Option(help="Step to take; by default the middle.")] = None,
    guidance: GuidanceOption = 1.0,
    device: DeviceOption = None,
) -> None:
    """Errors of single attention calls on q, k and v of the dense run, layer by layer."""
    from benchmarks.fidelity.tensors import Call, attention_maps, measure

    step = steps // 2 if step is None else step
    sampler = _sampler(pipeline, prompt, [seed], steps, guidance, device)
    with torch.inference_mode():
        captured = sampler.capture(step)
        calls = [Call.of(layer, step, *tensors) for layer, tensors in enumerate(captured)]
        rows = [row for call in calls for row in measure(call, sampler.layout)]
        maps = attention_maps(calls, sampler.layout(1))
    note = (
        f"prompt {prompt}, seed {seed}, step {step} of {steps}, {_precision(sampler.device)}; "
        "relative error of attention outputs against float32"
    )
    path = write_result("fidelity_tensors", rows, note=note, folder=results)
    save_whole(maps, output / "fidelity_tensors.safetensors", {"prompt": prompt})
    logger.info("%s: %d rows", path, len(rows))


@app.command()
def windows(
    pipeline: PipelineOption = _DEMO,
    results: ResultsOption = RESULTS / "fidelity",
    name: Annotated[str, typer.Option(help="Name of the JSON.")] = "demo",
    prompt: PromptOption = "bigbuckbunny",
    first_seed: Annotated[int, typer.Option(help="First seed.")] = 0,
    seeds: Annotated[int, typer.Option(help="How many, all in one batch.", min=2)] = 16,
    steps: StepsOption = 30,
    guidance: GuidanceOption = 1.0,
    sparsity: Annotated[float, typer.Option(help="s of the rule that sets the density.")] = 0.8,
    workers: WorkersOption = _WORKERS,
    device: DeviceOption = None,
) -> None:
    """Windows in the package's tiles, and in small blocks in the reference."""
    from benchmarks.fidelity.metrics import scikit_image_version
    from benchmarks.fidelity.windows import measure_windows

    version = scikit_image_version()
    chosen = range(first_seed, first_seed + seeds)
    sampler = _sampler(pipeline, prompt, chosen, steps, guidance, device)
    rows = []
    note = (
        f"prompt {prompt}, seeds {chosen[0]} to {chosen[-1]}, {steps} steps of which the first "
        f"10 % dense, {_precision(sampler.device)}; at equal densities, pseudo-keys counted; "
        f"PSNR and SSIM by scikit-image {version} against the dense videos of the same kernel"
    )
    for row in measure_windows(sampler, sparsity, workers):
        rows.append(row)
        write_result(name, rows, note=note, folder=results)


@app.command()
def pictures(
    pipeline: PipelineOption = _PIPELINE,
    results: ResultsOption = RESULTS,
    output: OutputOption = _OUTPUT,
    images: Annotated[Path, typer.Option(help="Where the pictures go.")] = ROOT / "docs/images",
) -> None:
    """Frames side by side, kinds of heads, attention maps and PSNR against density."""
    from benchmarks.fidelity.pictures import draw_all

    codec = PatchCodec.from_pretrained(pipeline / "vae")
    record = json.loads(_existing(results / "fidelity.json", "study").read_text(encoding="utf-8"))
    kept = load_file(_existing(output / "fidelity.safetensors", "study"))
    maps = load_file(_existing(output / "fidelity_tensors.safetensors", "tensors"))
    for path in draw_all(record["rows"], kept, maps, codec, images):
        logger.info("%s: %d kB", path, path.stat().st_size // 1000)


@app.command()
def tables(
    check: Annotated[bool, typer.Option(help="Write nothing; fail if out of date.")] = False,
    results: ResultsOption = RESULTS,
    documents: Annotated[Path, typer.Option(help="Folder of the files.")] = ROOT / "docs",
) -> None:
    """Bring the tables of fidelity-tables.md and demo-study.md up to date with the results."""
    from benchmarks.fidelity.tables import contents, fill

    for name, sections in contents(results, documents / "images").items():
        document = documents / name
        text = document.read_text(encoding="utf-8")
        wanted = fill(text, sections)
        if check and wanted != text:
            raise SystemExit(f"{document} is out of date: run python scripts/fidelity.py tables")
        if wanted != text:
            temporary = document.with_name(f".{document.name}.part")
            temporary.write_text(wanted, encoding="utf-8")
            temporary.replace(document)


def _sampler(
    pipeline: Path,
    prompt: str,
    seeds: Sequence[int],
    steps: int,
    guidance: float,
    device: str | None,
) -> Sampler:
    from benchmarks.fidelity.sampling import Sampler

    return Sampler(
        pipeline,
        prompt=prompt,
        seeds=seeds,
        steps=steps,
        guidance=guidance,
        device=_device(device),
    )


def _run(
    name: str,
    configs: list[Config],
    sampler: Sampler,
    workers: int,
    max_minutes: float,
    results: Path,
) -> dict[str, Tensor]:
    """Run configurations, write their scores as `name`.json; returns tensors for pictures."""
    from benchmarks.fidelity.metrics import scikit_image_version
    from benchmarks.fidelity.study import Study

    version = scikit_image_version()
    runs = Study(sampler, workers)
    left = configs
    try:
        left = runs.run(configs, max_minutes * 60)
    finally:  # what was measured before an error is kept
        runs.finish()
        note = (
            f"prompt {sampler.prompt}, seeds {sampler.seeds[0]} to {sampler.seeds[-1]}, "
            f"{sampler.steps} steps, guidance {sampler.guidance:g}, {sampler.size.frames}x"
            f"{sampler.size.height}x{sampler.size.width}, {_precision(sampler.device)}; "
            f"PSNR and SSIM by scikit-image {version} on decoded frames (uint8)"
        )
        if left:
            note += f"; {len(left)} of {len(configs)} configurations were not run"
        path = write_result(name, runs.rows, note=note, folder=results)
        logger.info("%s: %d configurations", path, len(runs.rows))
    return runs.kept


def _device(name: str | None) -> torch.device:
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _precision(device: torch.device) -> str:
    return "float16" if device.type == "cuda" else "float32 on the CPU"


def _existing(path: Path, command: str) -> Path:
    if not path.is_file():
        raise InvalidInputError(f"{path} is missing: run `fidelity.py {command}` first")
    return path


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    run_app(app, show_time=True)
