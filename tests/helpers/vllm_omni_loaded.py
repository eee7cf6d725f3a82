"""vLLM-Omni's own modules, with stand-ins for vLLM, which does not install everywhere."""

from __future__ import annotations

import functools
import importlib
import importlib.abc
import importlib.machinery
import logging
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch.nn.functional as F


class _AnyName(type):
    def __getattr__(cls, name: str) -> str:
        if name.startswith("__"):
            raise AttributeError(name)
        return name


class _StandIn(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Every module ``vllm.*``: classes without contents, functions that do nothing."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "vllm":
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__path__ = []

        def attribute(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            value = _AnyName(name, (), {}) if name[0].isupper() else mock.MagicMock(name=name)
            setattr(module, name, value)
            return value

        module.__getattr__ = attribute
        return module

    def exec_module(self, module):
        """Nothing to run."""


class _Logger(logging.LoggerAdapter):
    """As vLLM's: a message with the same values is logged once."""

    @functools.cache  # noqa: B019  (ends with the module)
    def info_once(self, message: str, *values: Any) -> None:
        self.info(message, *values)

    @functools.cache  # noqa: B019
    def warning_once(self, message: str, *values: Any) -> None:
        self.warning(message, *values)


def _resolved(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _layer_index(prefix: str) -> int:
    (number,) = (int(part) for part in prefix.split(".") if part.isdigit())
    return number


def _flash_attention(q, k, v, causal: bool, softmax_scale: float):
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    out = F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=softmax_scale)
    return out.transpose(1, 2)


def _ours(name: str) -> bool:
    top = name.partition(".")[0]
    return top in ("vllm", "vllm_omni") or name.endswith("integrations.vllm_omni_backend")


@contextmanager
def vllm_omni_loaded(folder: Path) -> Iterator[None]:
    """Import from `folder`, as on a machine with CUDA, until the context ends."""
    finder = _StandIn()
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(folder))
    try:
        package = types.ModuleType("vllm_omni")  # its __init__ patches vLLM
        package.__path__ = [str(folder / "vllm_omni")]
        sys.modules["vllm_omni"] = package
        _fill_vllm()
        interface = importlib.import_module("vllm_omni.platforms.interface")
        platforms = importlib.import_module("vllm_omni.platforms")

        class Cuda(interface.OmniPlatform):
            _omni_enum = interface.OmniPlatformEnum.CUDA

            @classmethod
            def get_diffusion_attn_backend_cls(cls, selected_backend, head_size, **_):
                registry = importlib.import_module(
                    "vllm_omni.diffusion.attention.backends.registry"
                )
                cls.validate_diffusion_attn_backend(selected_backend)
                return registry.DiffusionAttentionBackendEnum[selected_backend].get_path()

        platforms._current_omni_platform = Cuda()
        flash = importlib.import_module("vllm_omni.diffusion.attention.backends.utils.fa")
        flash.HAS_FLASH_ATTN, flash.flash_attn_func = True, _flash_attention
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(folder))
        for name in [name for name in sys.modules if _ours(name)]:
            del sys.modules[name]


def _fill_vllm() -> None:
    """What of vLLM has to do something."""

    def config(*arguments, **_):
        return arguments[0] if arguments else lambda cls: cls

    values = {
        "vllm.config.utils": {"config": config},
        "vllm.logger": {"init_logger": lambda name: _Logger(logging.getLogger(name), {})},
        "vllm.model_executor.layers.quantization": {"QUANTIZATION_METHODS": []},
        "vllm.model_executor.models.utils": {"extract_layer_index": _layer_index},
        "vllm.utils.import_utils": {"resolve_obj_by_qualname": _resolved},
    }
    for module, names in values.items():
        for name, value in names.items():
            setattr(importlib.import_module(module), name, value)
