"""The whole experiment on one process: data, training, a sample, the comparison."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from typing import Any

import cv2
import torch
import torch.distributed as dist
from torch import nn

from benchmarks.film.autoencoder import load_autoencoder
from benchmarks.film.catalogue import Catalogue
from benchmarks.film.coverage import coverage
from benchmarks.film.data import Shot, load_film, split_shots
from benchmarks.film.evaluate import Evaluator, compare_rules, make_cases
from benchmarks.film.latents import Latents, make_latents
from benchmarks.film.model import build_model, rotary_of
from benchmarks.film.pieces import load_pieces, save_pieces
from benchmarks.film.report import Report
from benchmarks.film.sample import draw, write_strip
from benchmarks.film.scene import SCENES, Scene
from benchmarks.film.train import Stage, Trainer, text_table

logger = logging.getLogger(__name__)
DRY_STEPS = 3


def run(options: argparse.Namespace, started: float, device: torch.device) -> None:
    """Do everything; ``started`` is the monotonic time from which the limit counts."""
    scene = SCENES[options.scene][options.dry]
    rank, world = dist.get_rank(), dist.get_world_size()
    options.output.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(options.seed)
    cv2.setNumThreads(2)

    autoencoder = load_autoencoder(options.data, device)
    grids = [scene.coarse, scene.grid] if options.load_weights is None else [scene.grid]
    sizes = [scene.pixels(grid) for grid in grids]
    film = load_film(options.data, sizes, rank, world, options.frames)
    logger.info("%d frames, %d shots", film.frames, len(film.shots))
    latents = [make_latents(autoencoder, p, film.frames, device) for p in film.pictures]
    training, held = split_shots(film.shots, scene.usable, options.hold_out)
    counts = {"train": training, "held_out": held}
    sequences = {k: count_sequences(shots, scene.grid[0]) for k, shots in counts.items()}
    logger.info("%d shots to train on, %d held out: %s", len(training), len(held), sequences)

    text = text_table(len(training), scene, options.seed, device)
    rotary = rotary_of(scene, scene.grid, device)
    weights, log = _trained(options, scene, latents, training, text)
    full = latents[-1]
    if options.save_weights is not None and rank == 0:
        facts = {"seed": options.seed, "scene": options.scene, "dry": options.dry, "training": log}
        facts |= {"latents": {"mean": full.mean, "deviation": full.deviation}}
        save_pieces(options.save_weights, weights, facts)
    model = for_evaluation(scene, weights, device)

    name = report_name(options)
    if rank == 0:
        drawn = draw(model, scene, rotary, text[0], scene.decode_steps, options.seed)
        write_strip(options.output / f"{name}.png", autoencoder, full, drawn)
    begin = time.monotonic()
    until = min(begin + options.evaluation, started + options.limit)
    cases = make_cases(held, scene.grid[0], options.shots, options.clips)
    evaluator = Evaluator(model, scene, full, rotary, text, cases, options.seed)
    report = _report(options, scene, evaluator, log)
    report.facts |= {"frames": film.frames, "shots": len(film.shots), "sequences": sequences}
    catalogue = Catalogue(scene, device)
    finished = compare_rules(evaluator, catalogue.entries(), report, until)
    report.facts |= {"complete": finished, "seconds": round(time.monotonic() - started, 1)}
    if rank == 0:
        report.write()
        logger.info("%d rules, %.0f s in all", len(report.rows), report.facts["seconds"])


def _trained(
    options: argparse.Namespace,
    scene: Scene,
    latents: Sequence[Latents],
    training: Sequence[Shot],
    text: torch.Tensor,
) -> tuple[dict[str, torch.Tensor], list[dict[str, Any]]]:
    """Weights after all stages, or after tuning those that were loaded, and the log of both."""
    model = build_model(scene, text.device)
    logger.info("%.1f M parameters", sum(p.numel() for p in model.parameters()) / 1e6)
    log: list[dict[str, Any]] = []
    if options.load_weights is not None:
        weights, facts = load_pieces(options.load_weights, text.device)
        if facts["seed"] != options.seed:
            raise ValueError(f"the weights' texts are those of --seed {facts['seed']}")
        model.load_state_dict(weights)
        log = facts["training"]
    stages = _stages(options, scene, latents, text.device)
    if stages:
        steps = DRY_STEPS if options.dry else None
        trainer = Trainer(model, scene, training, text, options.seed, steps)
        for stage in stages:
            trainer.run(stage)
        log = log + trainer.log
    return {name: value.detach().clone() for name, value in model.state_dict().items()}, log


def report_name(options: argparse.Namespace) -> str:
    """Name of the files of a run, without suffix."""
    return f"{'seed' if options.scene == 'full' else options.scene}_{options.seed}"


def count_sequences(shots: Sequence[Shot], frames: int) -> dict[str, int]:
    """How many shots hold a sequence, and how many sequences there are, each begin counting."""
    starts = [len(shot) - frames + 1 for shot in shots if len(shot) >= frames]
    return {"shots": len(starts), "sequences": sum(starts)}


def _stages(
    options: argparse.Namespace, scene: Scene, latents: Sequence[Latents], device: torch.device
) -> list[Stage]:
    first, second = (rotary_of(scene, grid, device) for grid in (scene.coarse, scene.grid))
    full = latents[-1]
    if options.load_weights is not None:
        tuned = Stage("tuned", full, second, scene.batches[1], options.tune, (2e-4, 2e-5), 20)
        return [tuned] if options.tune > 0 else []
    batches, seconds = scene.batches, (options.stage1, options.stage2)
    return [
        Stage("coarse", latents[0], first, batches[0], seconds[0], (6e-4, 3e-4), 100),
        Stage("full", full, second, batches[1], seconds[1], (4e-4, 2e-5), 30),
    ]


def for_evaluation(
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
        "shapes": {name: list(map(list, pair)) for name, pair in scene.shapes.items()},
        "cases": [[case.shot, case.start, case.t] for case in evaluator.cases],
        "training": log,
        "dense_loss": losses,
        "keys_for_95_percent": share,
        "complete": False,
    }
    report = Report(options.output, report_name(options), facts, _note(options, scene))
    if options.load_weights is not None and not options.tune:
        report.go_on()
    dist.barrier()
    return report


def _note(options: argparse.Namespace, scene: Scene) -> str:
    if options.dry:
        return "a dry run, which says nothing"
    coarse, full = ("x".join(map(str, grid)) for grid in (scene.coarse, scene.grid))
    if options.load_weights is not None:
        tuned = f", tuned {options.tune:g} s at {full} tokens" if options.tune else ""
        return f"weights of an earlier run{tuned}; errors against dense attention, bfloat16"
    return (
        f"trained {options.stage1:g} s at {coarse} tokens, then {options.stage2:g} s at {full}; "
        "errors against dense attention, bfloat16"
    )
