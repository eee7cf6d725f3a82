"""The whole experiment on one process: data, training, a sample, the comparison."""

from __future__ import annotations

import argparse
import logging
import os
import time
from pathlib import Path
from typing import Any

import cv2
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import nn

from benchmarks.film.autoencoder import load_autoencoder
from benchmarks.film.catalogue import Catalogue
from benchmarks.film.coverage import coverage
from benchmarks.film.data import load_film, split_shots
from benchmarks.film.evaluate import Evaluator, compare_rules, make_cases
from benchmarks.film.latents import Latents, make_latents
from benchmarks.film.model import build_model, rotary_of
from benchmarks.film.report import Report
from benchmarks.film.sample import draw, write_strip
from benchmarks.film.scene import FULL, TINY, Scene
from benchmarks.film.train import Stage, Trainer, text_table

logger = logging.getLogger(__name__)
DRY_STEPS = 3
WEIGHTS = "model.safetensors"


def run(options: argparse.Namespace, started: float) -> None:
    """Do everything; ``started`` is the monotonic time from which the limit counts."""
    scene = TINY if options.dry else FULL
    device = _device(options.dry)
    rank, world = dist.get_rank(), dist.get_world_size()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    cv2.setNumThreads(2)

    autoencoder = load_autoencoder(options.data, device)
    sizes = [scene.pixels(scene.coarse), scene.pixels(scene.grid)]
    film = load_film(options.data, sizes, rank, world, options.frames)
    logger.info("%d frames, %d shots", film.frames, len(film.shots))
    coarse, full = (make_latents(autoencoder, p, film.frames, device) for p in film.pictures)
    training, held = split_shots(film.shots, scene.grid[0], options.hold_out)
    logger.info("%d shots to train on, %d held out", len(training), len(held))

    text = text_table(len(training), scene, options.seed, device)
    rotary = rotary_of(scene, scene.grid, device)
    model = build_model(scene, device)
    log: list[dict[str, Any]] = []
    if options.load_weights is None:
        logger.info("%.1f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
        steps = DRY_STEPS if options.dry else None
        trainer = Trainer(model, scene, training, text, options.seed, steps)
        for stage in _stages(options, scene, coarse, full, device):
            trainer.run(stage)
        log = trainer.log
        weights = {name: value.detach().clone() for name, value in model.state_dict().items()}
        del trainer, model
    else:
        weights = load_file(options.load_weights / WEIGHTS, device=str(device))
        del model
    if options.save_weights is not None and rank == 0:
        save_weights(options.save_weights, weights)
    model = _for_evaluation(scene, weights, device)

    if rank == 0:
        drawn = draw(model, scene, rotary, text[0], scene.decode_steps, options.seed)
        write_strip(options.output / f"seed_{options.seed}.png", autoencoder, full, drawn)
    begin = time.monotonic()
    until = min(begin + options.evaluation, started + options.limit)
    cases = make_cases(held, scene.grid[0], options.shots)
    evaluator = Evaluator(model, scene, full, rotary, text, cases, options.seed)
    report = _report(options, scene, evaluator, log)
    report.facts |= {"frames": film.frames, "shots": len(film.shots)}
    catalogue = Catalogue(scene, device)
    finished = compare_rules(evaluator, catalogue.entries(), report, until)
    report.facts |= {"complete": finished, "seconds": round(time.monotonic() - started, 1)}
    if rank == 0:
        report.write()
        logger.info("%d rules, %.0f s in all", len(report.rows), report.facts["seconds"])


def save_weights(folder: Path, weights: dict[str, torch.Tensor]) -> None:
    """Write weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    halves = {name: value.to(torch.bfloat16).cpu() for name, value in weights.items()}
    save_file(halves, folder / WEIGHTS)


def _device(dry: bool) -> torch.device:
    if dry:
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    torch.cuda.set_device(device)
    return device


def _stages(
    options: argparse.Namespace, scene: Scene, coarse: Latents, full: Latents, device: torch.device
) -> list[Stage]:
    first, second = (rotary_of(scene, grid, device) for grid in (scene.coarse, scene.grid))
    batches, seconds = scene.batches, (options.stage1, options.stage2)
    return [
        Stage("coarse", coarse, first, batches[0], seconds[0], (6e-4, 3e-4), 100),
        Stage("full", full, second, batches[1], seconds[1], (4e-4, 2e-5), 30),
    ]


def _for_evaluation(
    scene: Scene, weights: dict[str, torch.Tensor], device: torch.device
) -> nn.Module:
    """A fresh model, not compiled, in bfloat16 on a GPU."""
    model = build_model(scene, device)
    model.load_state_dict(weights)
    return model.to(torch.bfloat16 if device.type == "cuda" else torch.float32).eval()


def _report(
    options: argparse.Namespace, scene: Scene, evaluator: Evaluator, log: list[dict[str, Any]]
) -> Report:
    """The facts before any rule, and the results of an earlier run with the same weights."""
    share = coverage(evaluator)
    logger.info("share of keys for 95 %% of the mass: %s", share["quantiles"])
    losses = evaluator.dense_loss()
    logger.info("dense held-out loss %.4f", sum(losses) / len(losses))
    facts: dict[str, Any] = {
        "processes": dist.get_world_size(),
        "seed": options.seed,
        "grid": list(scene.grid),
        "cases": [[case.shot, case.start, case.t] for case in evaluator.cases],
        "training": log,
        "dense_loss": losses,
        "keys_for_95_percent": share,
        "complete": False,
    }
    report = Report(options.output, f"seed_{options.seed}", facts, _note(options, scene))
    if options.load_weights is not None:
        report.go_on()
    dist.barrier()
    return report


def _note(options: argparse.Namespace, scene: Scene) -> str:
    if options.dry:
        return "a dry run, which says nothing"
    if options.load_weights is not None:
        return "weights of an earlier run"
    coarse, full = ("x".join(map(str, grid)) for grid in (scene.coarse, scene.grid))
    return (
        f"trained {options.stage1:g} s at {coarse} tokens, then {options.stage2:g} s at {full}; "
        "errors against dense attention, bfloat16"
    )
