"""What step caches cost on the demo model, which needs no GPU.

    python -m benchmarks.fidelity.demo_caching [--output OUT]

Dense generations from one noise, smaller and shorter than those the model was trained on, with and
without a cache; the latents of each against those of all steps. Writes ``demo_caching.json``, whose
tables are in docs/caching.md.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor

from benchmarks.engine.measure import Row, relative_error
from benchmarks.record import RESULTS, write_result
from rainfusion_trt import CacheSettings, Pipeline
from rainfusion_trt.demo.console import run_app
from rainfusion_trt.demo.trained import TRAINED_PROMPT, load_trained
from rainfusion_trt.runtime.output import PipelineOutput
from rainfusion_trt.step_cache.calibrate import calibrate

STEPS, FIXED_STEPS = 30, 20
THRESHOLDS = {"easy": (0.05, 0.1, 0.2), "mag": (0.02, 0.06)}
EVERYTHING = 1e9  # a threshold below which no step has to run
CALL: dict[str, Any] = {
    "num_frames": 25,
    "height": 128,
    "width": 160,
    "guidance_scale": 1.0,
    "output_type": "latent",
    "seed": 0,
}
NOTE = (
    "the demo model, DDIM with v-prediction, 25 frames of 128x160, dense, one seed, float32; "
    "errors are relative to the latents of all steps. Fixed skips: a threshold that lets as many "
    "steps be skipped in a row as max_skips allows"
)
app = typer.Typer(add_completion=False, help=__doc__)


@app.command()
def main(
    output: Annotated[Path, typer.Option(help="Folder of the JSON file.")] = RESULTS,
) -> None:
    """Measure and write the file."""
    pipe = load_trained(torch.float32)
    with Pipeline(pipe=pipe, backend="torch", device="cpu", sparsity=0.0) as pipeline:
        rows = [*by_threshold(pipeline), *with_fixed_skips(pipeline)]
    print(f"wrote {write_result('demo_caching', rows, note=NOTE, folder=output)}")


def by_threshold(pipeline: Pipeline) -> list[Row]:
    """Both rules at their thresholds."""
    ratios = calibrate(pipeline, [TRAINED_PROMPT], num_inference_steps=STEPS, **CALL)
    wanted, _ = latents(pipeline, STEPS, None)
    rows = []
    for rule, thresholds in THRESHOLDS.items():
        for threshold in thresholds:
            known = ratios if rule == "mag" else None
            settings = CacheSettings(rule, threshold=threshold, ratios=known)
            rows.append(
                row("threshold", STEPS, settings, *latents(pipeline, STEPS, settings), wanted)
            )
    return rows


def with_fixed_skips(pipeline: Pipeline) -> list[Row]:
    """The output of the last time against the residual, for the same steps."""
    wanted, _ = latents(pipeline, FIXED_STEPS, None)
    rows = []
    for skips in (1, 2):
        for reuse in ("output", "residual"):
            settings = CacheSettings(
                "easy", threshold=EVERYTHING, first=0.2, max_skips=skips, reuse=reuse
            )
            found = latents(pipeline, FIXED_STEPS, settings)
            rows.append(row("fixed skips", FIXED_STEPS, settings, *found, wanted))
    return rows


def latents(
    pipeline: Pipeline, steps: int, settings: CacheSettings | None
) -> tuple[Tensor, tuple[int, ...]]:
    """The latents of a generation, and which steps were skipped."""
    out = pipeline(TRAINED_PROMPT, num_inference_steps=steps, cache=settings, **CALL)
    assert isinstance(out, PipelineOutput)
    return out.frames, out.skipped


def row(
    what: str,
    steps: int,
    settings: CacheSettings,
    found: Tensor,
    skipped: tuple[int, ...],
    wanted: Tensor,
) -> Row:
    return {
        "what": what,
        "cache": settings.rule,
        "threshold": settings.threshold,
        "reuse": settings.reuse,
        "max_skips": settings.max_skips,
        "steps": steps,
        "skipped": list(skipped),
        "relative_error_of_latents": relative_error(found, wanted),
    }


if __name__ == "__main__":
    run_app(app, show_time=True)
