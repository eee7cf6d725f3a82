"""Weights for a diffusers transformer: random ones for tests and timing, real ones from disk."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, RainFusionError
from rainfusion_trt.models.checkpoint_checks import check_config, check_names
from rainfusion_trt.models.float8 import apply_scales
from rainfusion_trt.models.transformer import Transformer
from rainfusion_trt.models.weight_files import WeightFiles

_log = logging.getLogger(__name__)


def random_transformer(
    cls: type[Transformer],
    config: Mapping[str, Any],
    *,
    dtype: torch.dtype,
    device: str | torch.device,
    seed: int,
) -> Transformer:
    """A transformer with seeded random weights, drawn where they stay.

    Matrices get variance 1 / fan-in and norms a gain near 1, so that activations keep about unit
    scale through any depth. No second copy of a parameter is ever made. The same seed gives the
    same weights on one kind of device. Modules that the class keeps in float32 whatever the dtype
    are kept so, as `from_pretrained` does.
    """
    with parameters_on_meta():
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
def parameters_on_meta() -> Iterator[None]:
    """Parameters made inside have no storage; buffers (position tables) are computed as usual.

    `torch.device("meta")` would leave non-persistent buffers without values.
    """
    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(self, name, parameter)

    setattr(nn.Module, register.__name__, register_on_meta)
    try:
        yield
    finally:
        setattr(nn.Module, register.__name__, register)


def load_transformer(
    cls: type[Transformer], checkpoint: str, *, dtype: torch.dtype, component: str = "transformer"
) -> Transformer:
    """A transformer of a diffusers pipeline or a transformer of its own.

    Float8 weights with scales beside them are multiplied out. Where a directory only has files of
    one variant, such as fp16, these are read and the log says so.

    Parameters
    ----------
    checkpoint
        A directory (of a pipeline or of a transformer) or a Hugging Face hub id.
    component
        Its name in the pipeline.

    Raises
    ------
    InvalidInputError
        Nothing usable is there, or the weights are not those of the configuration.
    UnsupportedError
        It is of another class, or quantised.
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
    elif (
        path.is_absolute()
        or path.exists()
        or checkpoint.count("/") != 1
        or path.suffix in (".safetensors", ".gguf")
    ):
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} is neither a directory, a file nor a hub id such as "
            "'THUDM/CogVideoX-5b'"
        )
    try:
        module = _load(cls, checkpoint, subfolder, dtype)
    except RainFusionError:
        raise
    except (OSError, ValueError, TypeError, RuntimeError, KeyError, ImportError) as error:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} could not be loaded as {cls.__name__}: "
            f"{' '.join(str(error).split())}"
        ) from error
    return module.eval().requires_grad_(False)


def _load(
    cls: type[Transformer], checkpoint: str, subfolder: str | None, dtype: torch.dtype
) -> Transformer:
    config = cls.load_config(checkpoint, subfolder=subfolder)
    check_config(cls, config, f"checkpoint {checkpoint!r}")
    is_local = Path(checkpoint).is_dir()
    files = _files(cls, config, Path(checkpoint, subfolder or "")) if is_local else None
    variant = files.variant if files else None
    if variant is not None:
        _log.info("checkpoint %r: reading its %s variant, it has no other", checkpoint, variant)
    scales = files.scales() if files else {}
    with _quiet_about_scales() if scales else nullcontext():
        module, info = cls.from_pretrained(
            checkpoint,
            subfolder=subfolder,
            torch_dtype=dtype,
            variant=variant,
            output_loading_info=True,
        )
    if not is_local:
        files = _files(cls, config, Path(_downloaded(checkpoint), subfolder or ""))
        scales = files.scales() if files else {}
    if files is None:  # pickled files, which have no headers
        check_names(info["missing_keys"], info["unexpected_keys"], checkpoint)
    apply_scales(module, scales)
    return module


def _files(cls: type[Transformer], config: Mapping[str, Any], folder: Path) -> WeightFiles | None:
    """The files in a folder, which are those of this configuration; None if they are pickled."""
    files = WeightFiles.find(folder)
    if files is not None:
        ignored = getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ()
        files.check(expected_shapes(cls, config, str(folder)), ignored)
    return files


def expected_shapes(
    cls: type[Transformer], config: Mapping[str, Any], origin: str
) -> dict[str, tuple[int, ...]]:
    """Of every tensor that a checkpoint of this configuration has."""
    try:
        with parameters_on_meta():
            tensors = cls.from_config(config).state_dict()
    except Exception as error:  # of any kind: the class computes with what the file says
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidInputError(
            f"checkpoint {origin!r}: its config.json makes no {cls.__name__} ({reason}); "
            "download it again"
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _downloaded(repository: str) -> str:
    """Where the hub's client keeps what was loaded just now."""
    from huggingface_hub import snapshot_download

    return snapshot_download(repository, local_files_only=True)


@contextmanager
def _quiet_about_scales() -> Iterator[None]:
    """Diffusers warns of every tensor that it does not use itself."""
    from diffusers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
