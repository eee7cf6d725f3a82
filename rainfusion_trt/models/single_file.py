"""Transformers in one file, or in the files of their authors: safetensors and GGUF.

Names are diffusers', or those of the original code, which diffusers' own converter of the class
renames; either with a prefix such as ComfyUI's. Everything is checked on shapes before a weight is
read. The configuration is that of a config.json of the class beside the file, else the model's.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.errors import InvalidInputError, RainFusionError, UnsupportedError
from rainfusion_trt.models.authors_names import (
    check_spellings,
    converter,
    kept_in_float32,
    on_shapes,
)
from rainfusion_trt.models.checkpoint_checks import Shapes, check_quantised, first_line, named
from rainfusion_trt.models.gguf_file import GgufFile
from rainfusion_trt.models.noise_expert import expert_prefix
from rainfusion_trt.models.transformer import Transformer
from rainfusion_trt.models.weight_files import WeightFiles
from rainfusion_trt.models.weights import expected_shapes, parameters_on_meta

_log = logging.getLogger(__name__)

# config.json of the authors' code -> the class in diffusers.
_AUTHORS_CLASSES = {
    "WanModel": "WanTransformer3DModel",
    "VaceWanModel": "WanVACETransformer3DModel",
}
_PREFIXES = ("model.diffusion_model.", "diffusion_model.", "model.model.", "transformer.", "model.")
# Other parts of a pipeline, which a file of ComfyUI may hold too.
_OTHER_PARTS = re.compile(
    r"(vae|audio_vae|vocoder|first_stage_model|text_encoders?|cond_stage_model|conditioner"
    r"|text_embedding_projection)\."
)
_LORA = re.compile(r"(\.lora[._]|_lora\.|\.lokr_|\.hada_|\.diff(_b)?$)")

File = WeightFiles | GgufFile


def is_authors_folder(folder: Path, cls_name: str) -> bool:
    """Whether a folder is of the class's authors and not of diffusers, by its config.json."""
    config = _config(folder / "config.json")
    return _AUTHORS_CLASSES.get(str(config.get("_class_name"))) == cls_name


def load_single_file(
    cls: type[Transformer],
    path: Path,
    *,
    model: str,
    config: Mapping[str, Any],
    unseen: str,
    dtype: torch.dtype,
) -> Transformer:
    """A transformer of one file, or of a folder of its authors.

    Parameters
    ----------
    cls
        Its class in diffusers.
    path
        ``.safetensors``, ``.gguf``, or the folder.
    model
        Its name in the registry, for messages.
    config
        The configuration where none of the class lies beside the file.
    unseen
        Settings that shapes do not show; where there are, that configuration has to lie there.

    Raises
    ------
    InvalidInputError
        The file cannot be read, is a LoRA, holds two transformers or one tensor under two names, or
        is of another model, which the message names where it is in the registry.
    UnsupportedError
        It is pickled, or quantised in a way that is not read.
    """
    file = _without_prefix(_opened(path))
    check_quantised(file.weights(), file.origin)
    config, wanted = _configuration(cls, path, model, config, unseen)
    expected = expected_shapes(cls, config, file.origin)
    ignored = tuple(getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ())
    try:
        convert = converter(cls, file, expected, config)
        file.check(expected, ignored, converted=on_shapes(convert, file, model), wanted=wanted)
    except InvalidInputError as error:
        _tell_the_model(file, model, error)
        raise
    check_spellings(convert, file)
    float32 = kept_in_float32(cls, file, convert)
    try:
        weights = convert(dict(file.values(float32, dtype)))
    except RainFusionError:
        raise
    except (RuntimeError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"checkpoint {file.origin!r} cannot be read ({first_line(error)}); download it again"
        ) from error
    with parameters_on_meta():
        module = cls.from_config(dict(config))
    # Cut out of a larger tensor, they would keep the whole of it.
    own = {n: weights[n] if weights[n]._base is None else weights[n].clone() for n in expected}
    module.load_state_dict(own, assign=True)
    return module.eval().requires_grad_(False)


def _opened(path: Path) -> File:
    if path.is_dir():
        files = WeightFiles.find(path)
        if files is not None:
            return files
    elif path.suffix == ".safetensors":
        return WeightFiles.of_file(path)
    elif path.suffix == ".gguf":
        return GgufFile.of_file(path)
    raise UnsupportedError(
        f"checkpoint {str(path)!r} is no .safetensors or .gguf file; pickled ones can run code and "
        "are not read"
    )


def _without_prefix(file: File) -> File:
    """The transformer's tensors by their names without what stands before all of them."""
    names = list(file.shapes)
    if any(_LORA.search(name) for name in names):
        some = next(name for name in names if _LORA.search(name))
        raise InvalidInputError(
            f"checkpoint {file.origin!r} is a LoRA (it has {some}): give it by --lora, beside the "
            "--checkpoint that it was trained for"
        )
    experts = sorted({found for name in names if (found := expert_prefix(name))})
    whole = [name for name in names if not _OTHER_PARTS.match(name)]
    if len(experts) > 1 or (experts and not all(map(expert_prefix, whole))):
        raise InvalidInputError(
            f"checkpoint {file.origin!r} holds two transformers ({named(experts)} and the rest): "
            "save each in a file of its own, and export each with its --component"
        )
    prefixes = (*experts, *_PREFIXES)
    prefix = next((p for p in prefixes if any(name.startswith(p) for name in names)), "")
    bare = {name: name.removeprefix(prefix) for name in whole}
    twice = [name for name in whole if bare[name] != name and bare[name] in bare]
    if twice:
        raise InvalidInputError(
            f"checkpoint {file.origin!r} holds two transformers ({twice[0]} and {bare[twice[0]]}, "
            "and so on), such as weights and their average: save the one to take in a file of its "
            "own"
        )
    return file.renamed(bare)


def _configuration(
    cls: type[Transformer], path: Path, model: str, config: Mapping[str, Any], unseen: str
) -> tuple[Mapping[str, Any], str]:
    """The configuration, and what it is called."""
    beside = (path if path.is_dir() else path.parent) / "config.json"
    found = _config(beside)
    if found.get("_class_name") == cls.__name__:
        _log.info("checkpoint %r: its configuration is that of %s", str(path), beside)
        return found, str(beside)
    if unseen:
        raise InvalidInputError(
            f"checkpoint {str(path)!r}: weights do not show {unseen}; put the config.json of its "
            f"{cls.__name__} in diffusers beside the file"
        )
    _log.info("checkpoint %r: its configuration is that of %s in the registry", str(path), model)
    return config, model


def _config(path: Path) -> Mapping[str, Any]:
    """A configuration; empty where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _tell_the_model(file: File, model: str, error: InvalidInputError) -> None:
    """Raise a better error if another model of the registry has these weights."""
    others = [name for name in _models_that_fit(file) if name != model]
    if others:
        raise InvalidInputError(
            f"checkpoint {file.origin!r} holds the weights of {' or '.join(others)}, not of "
            f"{model}: choose that model"
        ) from error


def _models_that_fit(file: File) -> Iterable[str]:
    """Models of the registry whose weights these are."""
    from rainfusion_trt.models import get_model, model_names  # the registry is made of models

    for name in model_names():
        model = get_model(name)
        cls, config = model.diffusers_class(), model.config("full")
        expected = _registry_shapes(name)
        ignored = tuple(getattr(cls, "_keys_to_ignore_on_load_unexpected", None) or ())
        try:
            convert = converter(cls, file, expected, config)
            file.check(expected, ignored, converted=on_shapes(convert, file, name))
        except RainFusionError:
            continue
        yield name


@cache
def _registry_shapes(name: str) -> Shapes:
    from rainfusion_trt.models import get_model

    model = get_model(name)
    return expected_shapes(model.diffusers_class(), model.config("full"), name)
