"""Modules of 0.1 under their old names: they still import, with one warning each."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "rainfusion_trt.arguments": "rainfusion_trt.operator.arguments",
    "rainfusion_trt.build_plugin": "rainfusion_trt.plugin.build",
    "rainfusion_trt.cuda_ops": "rainfusion_trt.operator.cuda_ops",
    "rainfusion_trt.cuda_toolkit": "rainfusion_trt.plugin.toolkit",
    "rainfusion_trt.geometry": "rainfusion_trt.operator.geometry",
    "rainfusion_trt.native": "rainfusion_trt.operator.native",
    "rainfusion_trt.native_types": "rainfusion_trt.operator.native_types",
    "rainfusion_trt.ops": "rainfusion_trt.operator.ops",
    "rainfusion_trt.pipeline": "rainfusion_trt.runtime.pipeline",
    "rainfusion_trt.plan": "rainfusion_trt.operator.plan",
    "rainfusion_trt.reference": "rainfusion_trt.operator.reference",
}


class _Redirect(Loader):
    """Puts the module's new self where its old name is imported."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        old = module.__name__
        new = MOVED[old]
        warnings.warn(f"{old} has moved: import {new} instead", FutureWarning, stacklevel=2)
        # The import gives whatever is in sys.modules after this call.
        sys.modules[old] = importlib.import_module(new)


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(fullname, _Redirect()) if fullname in MOVED else None


def install() -> None:
    """Let ``import`` find the old names, once a process."""
    if not any(type(finder) is _Finder for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
