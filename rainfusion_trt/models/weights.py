"""Weights for a diffusers transformer: random ones for tests and timing, real ones from disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError


def random_transformer(
    cls: type[nn.Module],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    seed: int,
) -> nn.Module:
    """A transformer with seeded random weights, drawn where they stay.

    Matrices get variance 1 / fan-in and norms a gain near 1, so that activations keep about unit
    scale through any depth. No second copy of a parameter is ever made. The same seed gives the
    same weights on one kind of device. Modules that the class keeps in float32 whatever the dtype
    are kept so, as `from_pretrained` does.
    """
    with _parameters_on_meta():
        module = cls(**config)
    float32 = frozenset(getattr(cls, "_keep_in_fp32_modules", None) or ())
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in list(module.named_parameters()):
        path, _, leaf = name.rpartition(".")
        kept = not float32.isdisjoint(name.split("."))
        values = torch.empty(parameter.shape, dtype=torch.float32 if kept else dtype, device=device)
        _draw(values, leaf, generator)
        module.get_submodule(path)._parameters[leaf] = nn.Parameter(values, requires_grad=False)
    for owner in module.modules():
        for name, buffer in owner.named_buffers(recurse=False):
            owner._buffers[name] = buffer.to(device)
    return module.eval()


def _draw(values: Tensor, leaf: str, generator: torch.Generator) -> None:
    if values.dim() >= 2:
        fan_in = values.numel() // values.shape[0]
        values.normal_(0.0, fan_in**-0.5, generator=generator)
    else:  # a bias, or the gain of a norm
        values.normal_(0.0 if "bias" in leaf else 1.0, 0.02, generator=generator)


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Parameters made inside have no storage; buffers (position tables) are computed as usual.

    `torch.device("meta")` would leave non-persistent buffers without values.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, name, parameter)

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def load_transformer(
    cls: type[nn.Module], checkpoint: str, *, dtype: torch.dtype, component: str = "transformer"
) -> nn.Module:
    """A transformer of a diffusers pipeline or a transformer of its own.

    Parameters
    ----------
    checkpoint
        A directory (of a pipeline or of a transformer) or a Hugging Face hub id.
    component
        Its name in the pipeline.

    Raises
    ------
    InvalidInputError
        Nothing usable is there.
    """
    path = Path(checkpoint)
    subfolder: str | None = component
    if path.is_dir():
        if (path / "config.json").is_file():
            subfolder = None
        elif not (path / component / "config.json").is_file():
            raise InvalidInputError(
                f"checkpoint {checkpoint!r} holds neither config.json nor {component}/config.json; "
                "pass the directory of a diffusers pipeline or of its transformer"
            )
    elif path.is_absolute() or path.exists() or checkpoint.count("/") != 1:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} is neither a directory nor a hub id such as "
            "'THUDM/CogVideoX-5b'"
        )
    try:
        module = cls.from_pretrained(checkpoint, subfolder=subfolder, torch_dtype=dtype)
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} could not be loaded as {cls.__name__}: {error}"
        ) from error
    return module.eval().requires_grad_(False)
