"""diffusers' transformer in PyTorch: dense through cuDNN, compiled, and routed."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.engine.cases import Case
from benchmarks.engine.measure import Forward, Row, release
from rainfusion_trt import disable, enable
from rainfusion_trt.models import VideoSize

# The default of torch is a slower kernel. What cuDNN refuses falls to the second;
# `attention_kernels` says what each call ran on.
_CUDNN_FIRST = [SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_PREFIX = "aten::_scaled_dot_product_"


class Eager:
    """A case's transformer and one set of its inputs.

    Parameters
    ----------
    case
        The case to run.
    transformer
        The network of an earlier one, instead of a new one.
    """

    def __init__(self, case: Case, transformer: nn.Module | None = None) -> None:
        self.case = case
        self.model = case.model
        self.transformer = case.transformer() if transformer is None else transformer
        self.inputs = case.inputs(self.transformer)
        self.tokens, self.valid = case.tokens(self.transformer, self.inputs)
        self._masks_by_cudnn = True

    def settle(self) -> None:
        """Find out whether cuDNN takes the masks over text; where it fails they go elsewhere.

        That it says it can is not enough: it may find no plan when it is called.
        """
        try:
            self.without_padding()
        except RuntimeError:
            self._masks_by_cudnn = False
            release()
            self.without_padding()

    def twin(self) -> Eager:
        """The same weights and inputs in a transformer of its own, which can be enabled."""
        tensors = itertools.chain(self.transformer.parameters(), self.transformer.buffers())
        shared = copy.deepcopy(self.transformer, {id(tensor): tensor for tensor in tensors})
        other = Eager(self.case, shared)
        other._masks_by_cudnn = self._masks_by_cudnn
        return other

    def at(self, size: VideoSize) -> Eager:
        """The same weights with inputs of another size."""
        other = Eager(dataclasses.replace(self.case, size=size), self.transformer)
        other._masks_by_cudnn = self._masks_by_cudnn
        return other

    @torch.no_grad()
    def __call__(
        self, call: dict[str, Any] | None = None, *, module: nn.Module | None = None
    ) -> Tensor:
        """One forward with diffusers' own code."""
        call = self.model.forward_kwargs(self.inputs) if call is None else call
        module = self.transformer if module is None else module
        others = nullcontext() if self._masks_by_cudnn else text_masks_elsewhere(self.tokens)
        with cudnn_first(self.case.device), others:
            return module(**call, return_dict=False)[0]

    def without_padding(self, *, module: nn.Module | None = None) -> Tensor:
        """One forward whose self-attention leaves padded keys out instead of masking them."""
        with padding_cut(self.tokens, self.valid):
            return self(module=module)

    def routed(self, sparsity: float, call: dict[str, Any] | None = None) -> Tensor:
        """One forward through the torch operator."""
        case = self.case
        enable(
            self.transformer,
            sparsity=sparsity,
            model=self.model,
            method=case.method,
            precision=case.precision,
        )
        try:
            return self(call)
        finally:
            disable(self.transformer)

    def answer(self, call: dict[str, Any] | None, sparsity: float) -> Tensor:
        """Diffusers' own output at sparsity 0, else that of the torch operator."""
        return self.routed(sparsity, call) if sparsity > 0.0 else self(call)

    @torch.no_grad()
    def float32(self) -> Tensor:
        """One forward in float32; needs memory for a second, larger copy of the weights."""
        transformer = copy.deepcopy(self.transformer).float()
        inputs = {n: x.float() if x.is_floating_point() else x for n, x in self.inputs.items()}
        exact = (
            [SDPBackend.EFFICIENT_ATTENTION] if self.case.device == "cuda" else [SDPBackend.MATH]
        )
        with sdpa_kernel(exact):
            return transformer(**self.model.forward_kwargs(inputs), return_dict=False)[0]


@contextmanager
def cudnn_first(device: str) -> Iterator[None]:
    """Attention by cuDNN wherever it can; on the CPU, which has none, as torch likes."""
    if device != "cuda":
        yield
        return
    with sdpa_kernel(_CUDNN_FIRST, set_priority=True):
        yield


@contextmanager
def text_masks_elsewhere(tokens: int) -> Iterator[None]:
    """Masked attention over other than `tokens` keys by the second best kernel, not by cuDNN."""
    original = F.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if attn_mask is None or key.shape[-2] == tokens:
            return original(query, key, value, attn_mask, **kwargs)
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
            return original(query, key, value, attn_mask, **kwargs)

    with _attention(attend):
        yield


@contextmanager
def padding_cut(tokens: int, valid: int) -> Iterator[None]:
    """Self-attention over `tokens` without mask, on its first `valid` keys.

    The same result for all but padded rows, and a fairer baseline: a mask costs cuDNN time.
    """
    original = F.scaled_dot_product_attention

    def attend(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if attn_mask is not None and query.shape[-2] == key.shape[-2] == tokens:
            key, value, attn_mask = key[..., :valid, :], value[..., :valid, :], None
        return original(query, key, value, attn_mask, **kwargs)

    with _attention(attend):
        yield


@contextmanager
def _attention(attend: Callable[..., Tensor]) -> Iterator[None]:
    """`attend` in the place of torch's attention."""
    original = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original


def attention_kernels(run: Forward, eager: Eager) -> tuple[dict[str, int], dict[str, int]]:
    """Count the calls of each of torch's attention kernels in a forward.

    Returns
    -------
    tuple of dict
        For self-attention, with or without the padded keys, and for the rest.
    """
    own_shapes = {(eager.tokens, eager.tokens), (eager.tokens, eager.valid)}
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, record_shapes=True) as profile:
        run()
    own: Counter[str] = Counter()
    rest: Counter[str] = Counter()
    for event in profile.events():
        if event.name.startswith(_PREFIX):
            query, key = event.input_shapes[:2]
            counter = own if (query[-2], key[-2]) in own_shapes else rest
            counter[event.name.removeprefix(_PREFIX)] += 1
    return dict(own), dict(rest)


def kernel_row(run: str, forward: Forward, eager: Eager) -> Row:
    """On what attention ran; a failed row where that is not cuDNN for all self-attentions."""
    own, rest = attention_kernels(forward, eager)
    blocks = eager.case.blocks
    row: Row = {"what": "attention kernels", "run": run, "self_attention": _listed(own)}
    if rest:
        row["other_attention"] = _listed(rest)
    if eager.case.device == "cuda" and own != {"cudnn_attention": blocks}:
        row["failed"] = f"not all {blocks} self-attentions ran on cuDNN"
    return row


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items()) or "none seen"
