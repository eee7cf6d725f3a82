"""A transformer's sequence over several processes: what ``enable_parallelism`` of diffusers does.

Diffusers' own method asks for an accelerator before anything else, and puts uneven parts together
by an all-gather of unequal sizes, which gloo has not, after asking every process for its size. This
takes the same plan and the same hooks for cutting, and one hook of its own for putting together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from rainfusion_trt.routing.parallel import Ulysses
from rainfusion_trt.routing.parallel_plan import cp_plan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from rainfusion_trt.routing.state import Routing

_GATHER = "rainfusion_gather"


def spread(routing: Routing, transformer: Any, mesh: DeviceMesh) -> None:
    """Cut the sequence of an enabled transformer over the processes of a mesh.

    All processes of the job have to call it, since it makes groups.

    Parameters
    ----------
    routing : Routing
        What :func:`rainfusion_trt.enable` returned.
    transformer : ModelMixin
        Not compiled as a whole.
    mesh
        Has the dimensions ``ring``, of size 1, and ``ulysses``.
    """
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig

    context = ContextParallelConfig(
        ulysses_degree=mesh["ulysses"].size(), ulysses_anything=True, mesh=mesh
    )
    config = ParallelConfig(context_parallel_config=context)
    device = torch.device(mesh.device_type)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh)
    transformer._parallel_config = config
    _tell_processors(transformer, config)
    cuts, ends = _parts(transformer)
    apply_context_parallel(transformer, context, cuts)
    ulysses = Ulysses.of(config)
    assert ulysses is not None
    for end in ends:
        registry = HookRegistry.check_if_exists_or_initialize(end)
        registry.register_hook(_Gather(routing, ulysses), _GATHER)


def unspread(transformer: Any) -> None:
    """Undo `spread`."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    cuts, ends = _parts(transformer)
    remove_context_parallel(transformer, cuts)
    for end in ends:
        HookRegistry.check_if_exists_or_initialize(end).remove_hook(_GATHER)
    _tell_processors(transformer, None)
    transformer._parallel_config = None


class _Gather(ModelHook):
    """Puts the video tokens [B, S of a process, C] together; how many there are follows."""

    def __init__(self, routing: Routing, ulysses: Ulysses) -> None:
        super().__init__()
        self.routing = routing
        self.ulysses = ulysses

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        sizes = self.ulysses.sizes(self.routing.running_tokens().grid.numel())
        padded = nn.functional.pad(output, (0, 0, 0, sizes[0] - output.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.ulysses.group)
        cut = [part[:, :size] for part, size in zip(parts, sizes, strict=True)]
        return torch.cat(cut, dim=1)


def _parts(transformer: Any) -> tuple[dict[str, Any], list[nn.Module]]:
    """Where the plan cuts, and the modules behind which it puts together."""
    plan = cp_plan(transformer)
    cuts = {name: part for name, part in plan.items() if isinstance(part, dict)}
    return cuts, [transformer.get_submodule(name) for name in plan if name not in cuts]


def _tell_processors(transformer: Any, config: Any) -> None:
    for module in transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = config
