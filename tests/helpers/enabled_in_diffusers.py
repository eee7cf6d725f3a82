"""A pytest plugin for diffusers' own tests: every video transformer that they make is enabled.

``scripts/diffusers_tests.sh`` runs them with it. ``RAINFUSION_SPARSITY`` is the sparsity, 0 by
default, which must give what diffusers gives, or ``without``, which enables nothing. At a sparsity
above 0 only tests that compare no values can pass, and as their clips have too few frames to be
sparse, dense attention is permitted.
"""

from __future__ import annotations

import functools
import json
import os
from pathlib import Path
from typing import Any

import diffusers
import pytest

import rainfusion_trt

_CHOICE = os.environ.get("RAINFUSION_SPARSITY", "0")
_SPARSITY = None if _CHOICE == "without" else float(_CHOICE)
_MODELS = {
    "WanTransformer3DModel": "wan2.1-1.3b",
    "CogVideoXTransformer3DModel": "cogvideox-5b",
    "HunyuanVideoTransformer3DModel": "hunyuanvideo",
    "HunyuanVideo15Transformer3DModel": "hunyuanvideo-1.5",
    "AllegroTransformer3DModel": "allegro",
}
_made = dict.fromkeys(_MODELS, 0)


def _enable_all(kind: type, model: str, sparsity: float) -> None:
    construct = kind.__init__

    @functools.wraps(construct)
    def enabled(self: Any, *args: Any, **kwargs: Any) -> None:
        construct(self, *args, **kwargs)
        if type(self) is kind:
            options = {"sparsity": sparsity, "model": model, "allow_dense": sparsity > 0}
            rainfusion_trt.enable(self, **options)
            _made[kind.__name__] += 1

    kind.__init__ = enabled


if _SPARSITY is not None:
    for _name, _model in _MODELS.items():
        _enable_all(getattr(diffusers, _name), _model, _SPARSITY)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rainfusion-outcomes", type=Path, help="folder for what became of each test")


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say how many there were, since none would prove nothing, and keep every test's outcome."""
    terminalreporter.write_line(f"RainFusion, sparsity {_CHOICE}: {_made}")
    folder = config.getoption("--rainfusion-outcomes")
    if folder is None:
        return
    kinds = ("passed", "failed", "error", "skipped")
    stats = terminalreporter.stats
    tests = {kind: sorted({r.nodeid for r in stats.get(kind, [])}) for kind in kinds}
    record = {"sparsity": _CHOICE, "made": _made, "tests": tests}
    (folder / f"{_CHOICE}.json").write_text(json.dumps(record))
