"""``shared_tokens``: a transformer whose tokens are cut for several GPUs while it is traced."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from rainfusion_trt.errors import ExportError
from rainfusion_trt.export.shared_ops import gather_tokens, split_tokens
from rainfusion_trt.models.token_cuts import TokenCuts, modules_of

Cut = Callable[[Tensor], Tensor]


@contextmanager
def shared_tokens(
    cuts: TokenCuts,
    transformer: nn.Module,
    call: Mapping[str, Any],
    part: Tensor,
    grid: Tensor,
) -> Iterator[dict[str, Any]]:
    """Give the keyword arguments with which to call the transformer while this is entered.

    Parameters
    ----------
    cuts
        Where its tokens are cut and put together.
    transformer
        Is given hooks, for as long.
    call
        The keyword arguments of its forward, over the whole video.
    part
        [n] for a GPU's n tokens; only its shape is read.
    grid
        [T, H, W] of the whole video; only its shape is read.
    """
    tokens: list[int] = []  # of the whole video, as the tensors that are cut have it

    def cut_at(axis: int) -> Cut:
        def cut(tensor: Tensor) -> Tensor:
            tokens.append(tensor.shape[axis])
            return split_tokens(tensor, part, axis)

        return cut

    def gather(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        if not tokens:
            raise ExportError(f"{type(transformer).__name__}: no tensor over the tokens was cut")
        return gather_tokens(output, grid, tokens[0], 1)

    arguments = dict(call)
    with ExitStack() as stack:
        for (name, argument), axis in cuts.arguments.items():
            if not name:
                arguments[argument] = tree_map_only(Tensor, cut_at(axis), arguments[argument])
                continue
            hook = _argument_hook(argument, cut_at(axis))
            for module in modules_of(transformer, name):
                handle = module.register_forward_pre_hook(hook, with_kwargs=True)
                stack.callback(handle.remove)
        for name, axis in cuts.outputs.items():
            handle = transformer.get_submodule(name).register_forward_hook(
                _output_hook(cut_at(axis))
            )
            stack.callback(handle.remove)
        handle = transformer.get_submodule(cuts.gathered).register_forward_hook(gather)
        stack.callback(handle.remove)
        yield arguments


def _argument_hook(argument: str, cut: Cut) -> Callable[..., Any]:
    def hook(module: nn.Module, args: Any, kwargs: Any) -> tuple[Any, Any]:
        bound = inspect.signature(module.forward).bind(*args, **kwargs)
        bound.arguments[argument] = tree_map_only(Tensor, cut, bound.arguments[argument])
        return bound.args, bound.kwargs

    return hook


def _output_hook(cut: Cut) -> Callable[..., Any]:
    return lambda module, args, output: tree_map_only(Tensor, cut, output)
