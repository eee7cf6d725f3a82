"""Exceptions of other packages that a user can mend: which they are, and what to do.

Told by the names of modules, so that nothing is imported for it. Three kinds:

* of the operating system: files, disks, memory, networks;
* of a type that a package has for what it refuses, wherever it is raised;
* of Python's general types, where a package refuses something with `raise ValueError` or the like.
  A KeyError or a TypeError is nobody's refusal, and in our own modules all of them are bugs.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from types import TracebackType
from typing import Any, NamedTuple

from rainfusion_trt.field_errors import explain_fields

_MOST = 600  # characters of what others say


class _Kind(NamedTuple):
    packages: tuple[str, ...]
    text: str


_AGAIN = "download or write it again"
_TRACER = _Kind(
    ("torch.export", "torch.onnx", "torch._dynamo", "torch._export", "torch.fx"),
    "torch cannot trace the module ({}): its forward has to be traceable by torch.export",
)
_TYPES = (
    _Kind(
        ("safetensors", "safetensors_rust"), f"a safetensors file cannot be read ({{}}): {_AGAIN}"
    ),
    _Kind(("onnxruntime",), "ONNX Runtime refuses the model or its inputs ({}): export it again"),
    _Kind(("onnx", "google.protobuf"), "an ONNX file cannot be read ({}): export it again"),
    _Kind(("onnx_ir", "onnxscript"), "the graph cannot be made or read ({}): export it again"),
    _Kind(("pydantic", "pydantic_core"), "a value does not fit ({}): correct it where it is given"),
    _Kind(("yaml",), "a file is not valid YAML ({}): correct it there"),
    _Kind(
        ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests", "urllib3"),
        "the hub cannot give it ({}): check the name and the network, and `hf auth login`",
    ),
    _Kind(("zipfile", "pickle", "_pickle"), f"a file cannot be unpacked ({{}}): {_AGAIN}"),
    _Kind(("av",), "the video cannot be written ({}): choose another file or size"),
    _TRACER,
)
_REFUSALS = (
    _Kind(  # which names tiktoken where sentencepiece is what is missing
        ("transformers.convert_slow_tokenizer",),
        "a tokenizer cannot be read ({}): pip install sentencepiece protobuf, which the extra "
        "`pipeline` brings; if they are there, download the file again",
    ),
    _Kind(
        ("diffusers", "transformers", "accelerate", "tokenizers", "huggingface_hub"),
        "{package} refuses it ({}): check the checkpoint and the options",
    ),
    _Kind(("peft",), "peft refuses the adapter ({}): check the file and its model"),
    _Kind(("safetensors",), f"safetensors refuses the file ({{}}): {_AGAIN}"),
    _Kind(("torch.serialization",), f"torch cannot read a file of weights ({{}}): {_AGAIN}"),
    _Kind(
        ("torch.nn.modules.module",),
        "the weights do not fit the model ({}): choose the model they belong to",
    ),
    _Kind(("torch.cuda",), "CUDA cannot be used ({}): see `rainfusion-trt info`, or --device cpu"),
    _Kind(("onnx", "onnxruntime"), "the ONNX file is refused ({}): export it again"),
    _TRACER,
)
_VALIDATION = ("pydantic_core._pydantic_core", "ValidationError")
_GENERAL = (ValueError, RuntimeError, NotImplementedError, OSError, ImportError, Exception)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_MEMORY = "DefaultCPUAllocator: can't allocate memory"  # of torch, in a RuntimeError


def explain_other(error: BaseException) -> str | None:
    """Cause and remedy of an exception that is not ours; None if it is a bug."""
    if _is_memory(error):
        where = _said(error) if str(error) else "on the host"
        remedy = "ask for a smaller clip, or try --cpu-offload and --vae-tiling"
        return f"out of memory ({where}): {remedy}"
    for kind in _TYPES:
        if any(_belongs(cls.__module__, kind.packages) for cls in type(error).__mro__):
            return kind.text.format(_said(error), package=_package(kind, type(error).__module__))
    if isinstance(error, ModuleNotFoundError):
        return _missing_module(error)
    if isinstance(error, json.JSONDecodeError):
        return f"a file that has to be JSON is not ({_said(error)}): {_AGAIN}"
    if isinstance(error, UnicodeError):
        return f"a text is not UTF-8 ({_said(error)}): {_AGAIN}"
    refusal = _refusal(error)
    if refusal is not None or not isinstance(error, OSError):
        return refusal
    if error.errno in _NO_SPACE:
        file = error.filename or "a file cannot be written"
        return f"{file}: {error.strerror} (make room there, or write elsewhere)"
    if error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return _said(error)


def _is_memory(error: BaseException) -> bool:
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (type(error) is RuntimeError and _NO_MEMORY in str(error))
    )


def _refusal(error: BaseException) -> str | None:
    """What another package says in a general exception that it raised itself.

    What has an errno is the operating system's, whoever called it.
    """
    if type(error) not in _GENERAL or getattr(error, "errno", None) is not None:
        return None
    *_, place = ("", *_modules(error.__traceback__))
    for kind in _REFUSALS:
        if _belongs(place, kind.packages):
            return kind.text.format(_said(error), package=place.split(".")[0])
    return None


def _missing_module(error: ModuleNotFoundError) -> str | None:
    name = (error.name or "").split(".")[0]
    if not name or name == "rainfusion_trt":
        return None
    return (
        f"the package {name} is not installed ({_said(error)}): `rainfusion-trt info` says what is "
        "missing and how to get it"
    )


def _modules(trace: TracebackType | None) -> Iterator[str]:
    """Names of the modules that an exception went through, that which raised it last."""
    while trace is not None:
        yield str(trace.tb_frame.f_globals.get("__name__", ""))
        trace = trace.tb_next


def _belongs(module: str, packages: tuple[str, ...]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def _package(kind: _Kind, module: str) -> str:
    return next((name for name in kind.packages if _belongs(module, (name,))), kind.packages[0])


def _said(error: BaseException) -> str:
    """An exception's own words, not too many of them."""
    text = " ".join(_words(error).split()) or type(error).__name__
    return text if len(text) <= _MOST else f"{text[:_MOST]} ..."


def _words(error: Any) -> str:
    if (type(error).__module__, type(error).__name__) == _VALIDATION:
        return explain_fields(error)
    return str(error)
