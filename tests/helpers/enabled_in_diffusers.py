"""A pytest plugin for diffusers' own tests: every video transformer that they make is enabled.

``scripts/diffusers_tests.sh`` runs them with it. ``RAINFUSION_SPARSITY`` is the sparsity, 0 by
default, which must give what diffusers gives. At another one only tests that compare no values can
pass, and as their clips have too few frames to be sparse, dense attention is permitted.
"""

from __future__ import annotations

import functools
import os

import diffusers

import rainfusion_trt

_SPARSITY = float(os.environ.get("RAINFUSION_SPARSITY", "0"))
_MODELS = {
    "WanTransformer3DModel": "wan2.1-1.3b",
    "CogVideoXTransformer3DModel": "cogvideox-5b",
    "HunyuanVideoTransformer3DModel": "hunyuanvideo",
    "HunyuanVideo15Transformer3DModel": "hunyuanvideo-1.5",
    "AllegroTransformer3DModel": "allegro",
}
_made = dict.fromkeys(_MODELS, 0)


def _enable_all(kind: type, model: str) -> None:
    construct = kind.__init__

    @functools.wraps(construct)
    def enabled(self, *args, **kwargs):
        construct(self, *args, **kwargs)
        if type(self) is kind:
            options = {"sparsity": _SPARSITY, "model": model, "allow_dense": _SPARSITY > 0}
            rainfusion_trt.enable(self, **options)
            _made[kind.__name__] += 1

    kind.__init__ = enabled


for _name, _model in _MODELS.items():
    _enable_all(getattr(diffusers, _name), _model)


def pytest_terminal_summary(terminalreporter):
    """Say how many there were: none would prove nothing."""
    terminalreporter.write_line(f"RainFusion at sparsity {_SPARSITY}: {_made}")
