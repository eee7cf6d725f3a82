"""A transformer's sequence over several processes: what ``enable_parallelism`` of diffusers does.

Diffusers' own method asks for an accelerator before anything else, and puts uneven parts together
by an all-gather of unequal sizes, which gloo has not, after asking every process for its size. This
takes the same plan and the same hooks for cutting, and one hook of its own for putting together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
import torch.distributed as dist
from diffusers.hooks.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.transformer import uncompiled
from rainfusion_trt.routing.parallel import HEAD_GROUPS, Ulysses
from rainfusion_trt.routing.parallel_plan import cp_plan

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from rainfusion_trt.routing.state import Routing

_GATHER, _CUT, _KEEP = "rainfusion_gather", "rainfusion_cut", "rainfusion_keep"


class _Early(NamedTuple):
    """Modules by name: convolutions whose outputs are but flattened before the first block, and
    what makes the rotary tables, where the plan cuts them."""

    patches: tuple[str, ...]
    tables: str | None = None


# By class. A plan cuts at the block, in whose call the forward still holds the whole sequence:
# with Wan 14B at 720p, 0.7 of 4.4 GiB on every GPU, however many there are.
_EARLY = {
    "HunyuanVideo15Transformer3DModel": _Early(("x_embedder.proj",)),
    "HunyuanVideoTransformer3DModel": _Early(("x_embedder.proj",)),
    "SkyReelsV2Transformer3DModel": _Early(("patch_embedding",), "rope"),
    "WanTransformer3DModel": _Early(("patch_embedding",), "rope"),
    "WanVACETransformer3DModel": _Early(("patch_embedding", "vace_patch_embedding"), "rope"),
}
_OF_PATCHES = ("hidden_states", "control_hidden_states")  # what blocks call what is made of them


def spread(routing: Routing, transformer: Any, mesh: DeviceMesh, *, head_groups: int = 1) -> None:
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
    head_groups
        `Ulysses.groups`.
    """
    from diffusers import ContextParallelConfig
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig

    context = ContextParallelConfig(
        ulysses_degree=mesh["ulysses"].size(), ulysses_anything=True, mesh=mesh
    )
    config = ParallelConfig(context_parallel_config=context)
    device = torch.device(mesh.device_type)
    setattr(config, HEAD_GROUPS, head_groups)
    config.setup(dist.get_rank(), dist.get_world_size(), device, mesh=mesh)
    # Both may refuse it, before anything is changed.
    cuts, ends, early = _places(transformer)
    patches = (
        {} if early is None else {name: _patch_of(transformer, name) for name in early.patches}
    )
    transformer._parallel_config = config
    for site in routing.sites:  # other attention has all of its keys on every process
        if hasattr(site.attention.processor, "_parallel_config"):
            site.attention.processor._parallel_config = config
    apply_context_parallel(transformer, context, cuts)
    ulysses = Ulysses.of(config)
    assert ulysses is not None
    hooks: list[tuple[str, ModelHook, str]] = [
        (end, _Gather(routing, ulysses), _GATHER) for end in ends
    ]
    clip: _Cut | None = None
    for name, patch in patches.items():
        cut = _Cut(ulysses, patch, clip)
        clip = clip or cut
        hooks.append((name, cut, _CUT))
    if early is not None and early.tables is not None:
        hooks.append((early.tables, _Keep(), _KEEP))
    for place, hook, name in hooks:
        module = transformer.get_submodule(place)
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, name)
    # What holds hooks, but for the transformer and lists, of which nobody replaces a module.
    places = [*cuts, *(place for place, _, _ in hooks)]
    transformer._rainfusion_cuts = {
        place: transformer.get_submodule(place)
        for place in places
        if place and not place.endswith(".*")
    }


def check_spread(transformer: Any) -> None:
    """See that what cuts the tokens and puts them together is still in its place.

    Raises
    ------
    UnsupportedError
        A module was replaced since, as by a LoRA on it.
    """
    for name, module in transformer._rainfusion_cuts.items():
        if transformer.get_submodule(name) is not module:
            raise UnsupportedError(
                f"{name} of {type(transformer).__name__} was replaced after its tokens were "
                "shared, and with it what cuts them: load or remove a LoRA of it before "
                "Pipeline(parallel=...)"
            )


def unspread(transformer: Any) -> None:
    """Undo `spread`."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    remove_context_parallel(transformer, _places(transformer)[0])
    for module in transformer._rainfusion_cuts.values():
        for name in (_GATHER, _CUT, _KEEP):
            HookRegistry.check_if_exists_or_initialize(module).remove_hook(name)
    for module in transformer.modules():
        processor: Any = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = None
    transformer._parallel_config = None
    transformer._rainfusion_cuts = {}


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


class _Cut(ModelHook):
    """This process's part of the tokens [B, C, T, H, W] of a convolution, as [B, C, S, 1, 1].

    The convolution has but the frames that the part is in, as what it makes of all of them, and of
    what it makes that, would be the most that a forward holds. Its kernels do not overlap.

    Attributes
    ----------
    clip : _Cut or None
        That of the clip, for control of as many tokens or fewer, which zeros follow as in
        diffusers.
    """

    def __init__(self, ulysses: Ulysses, patch: tuple[int, ...], clip: _Cut | None = None) -> None:
        super().__init__()
        self.ulysses = ulysses
        self.patch = patch
        self.clip = clip
        self.tokens = 0  # of all processes
        self.begin = 0  # of the part, in the tokens of the frames that there are
        self.count = 0
        self.missing = 0  # behind them

    def pre_forward(
        self, module: nn.Module, latents: Tensor
    ) -> tuple[tuple[Tensor], dict[str, Any]]:
        frames, rows, columns = (n // p for n, p in zip(latents.shape[2:], self.patch, strict=True))
        self.tokens = frames * rows * columns
        whole = self.tokens if self.clip is None else self.clip.tokens
        if self.tokens > whole:
            raise InvalidInputError(
                f"control of {self.tokens} tokens beside a clip of {whole}: give it as many frames "
                "and pixels as the clip, or fewer"
            )
        sizes = self.ulysses.sizes(whole)
        start, size = sum(sizes[: self.ulysses.rank]), sizes[self.ulysses.rank]
        start = min(start, self.tokens)
        self.count = min(size, self.tokens - start)
        self.missing = size - self.count
        first = min(start // (rows * columns), frames - 1)
        last = max(first + 1, -(-(start + self.count) // (rows * columns)))
        self.begin = start - first * rows * columns
        return (latents[:, :, first * self.patch[0] : last * self.patch[0]],), {}

    def post_forward(self, module: nn.Module, output: Tensor) -> Tensor:
        part = output.flatten(2).narrow(2, self.begin, self.count)
        if self.missing:
            part = nn.functional.pad(part, (0, self.missing))
        # Token by token, as every later block has them: else the first block's strides are others,
        # and torch.compile makes the graphs that follow for any stride.
        by_token = part.transpose(1, 2).clone(memory_format=torch.contiguous_format)
        return by_token.transpose(1, 2)[..., None, None]


class _Keep(ModelHook):
    """Parts of tables without the tables that they were cut from."""

    def post_forward(self, module: nn.Module, output: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(part.clone() for part in output)


def _patch_of(transformer: Any, name: str) -> tuple[int, ...]:
    """Latent frames, rows and columns of a token, by the convolution that embeds them."""
    module = transformer.get_submodule(name)
    convolution = getattr(module, "base_layer", module)  # beneath a LoRA
    if not isinstance(convolution, nn.Conv3d):
        raise UnsupportedError(
            f"{name} of {type(transformer).__name__} is {type(module).__name__} and no convolution "
            "over patches, so that its tokens cannot be cut: use ulysses=1"
        )
    return tuple(convolution.kernel_size)


def _places(transformer: Any) -> tuple[dict[str, Any], list[str], _Early | None]:
    """Where the plan cuts, the modules behind which it puts together, and what is cut earlier."""
    plan = cp_plan(transformer)
    early = _EARLY.get(uncompiled(transformer).__class__.__name__)
    if early is not None:
        plan = {name: _without_patches(cut) for name, cut in plan.items()}
    cuts = {name: part for name, part in plan.items() if isinstance(part, dict) and part}
    return cuts, [name for name, part in plan.items() if not isinstance(part, dict)], early


def _without_patches(cut: Any) -> Any:
    """What a plan cuts at a module, but for what is made of patches."""
    if not isinstance(cut, dict):
        return cut
    return {argument: how for argument, how in cut.items() if argument not in _OF_PATCHES}
