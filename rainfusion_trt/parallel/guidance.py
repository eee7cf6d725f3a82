"""The halves of classifier-free guidance on two groups of processes.

All processes run the same diffusers pipeline. What stands in its transformer's place gives each
group its half of the work, and every process both results:

* A batch of an even number (CogVideoX, Allegro: both halves in one call) is cut in the middle.
* Otherwise (Wan, HunyuanVideo: two calls) the first group computes the first call and the second
  group, meanwhile, the next one. The first call returns a `Later`, since pipelines read neither
  result before they have both. Should one do so all the same, then the second group receives what
  the first one has computed: equal, but nothing is saved, so that the first such step is an error.

Samples of a batch do not touch each other in a transformer, and calls do not either, so that the
results are those of one process.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.parallel.later import Later

_TOGETHER = ("sea_cache_root", "faster_cache_denoiser")  # hooks of caches that need both halves


def half(model: VideoModel, name: str, value: Any, batch: int, which: int) -> Any:
    """An argument of a call for one half of its batch.

    Parameters
    ----------
    model
        Says which of its inputs have a batch: the scales of VACE's layers have none, however many.
    name, value
        Of the argument. Several rows may be of one clip, as those of Wan's two images are.
    batch : int
        Of the whole call, even.
    which : int
        0 or 1.
    """
    if not torch.is_tensor(value) or not value.ndim:
        return value
    axes = next((given.axes for given in model.inputs if given.name == name), None)
    rows = value.shape[0]
    in_batch = rows == batch if axes is None else axes[0] == "batch" and rows % batch == 0
    return value.chunk(2)[which] if in_batch else value


class GuidanceGroups(nn.Module):
    """Stands for a transformer of which this process computes one half of the guidance.

    Parameters
    ----------
    transformer
        What computes; it has all other attributes.
    model
        Says where the latents have their channels.
    group : ProcessGroup
        Of two: this process and the one with the other half.

    Raises
    ------
    UnsupportedError
        A model whose results are not of the one form that processes exchange.
    """

    def __init__(self, transformer: Any, model: VideoModel, group: Any) -> None:
        axes = next(given.axes for given in model.inputs if given.name == "hidden_states")
        if len(model.outputs) > 1 or "in_channels" not in axes:
            raise UnsupportedError(
                f"guidance=2 cannot split the calls of {model.name}, whose results have another "
                "form than its latents: use guidance=1"
            )
        super().__init__()
        self.transformer = transformer
        self.model = model
        self.group = group
        self.which = dist.get_rank(group)
        self.unread: Later | None = None  # of a first call, until the second one
        self.paired = False

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("transformer"), name)

    def begin(self) -> None:
        """A generation begins: forget the one before."""
        self.unread = None
        self.paired = False

    def forward(self, *args: Any, return_dict: bool = True, **kwargs: Any) -> Any:
        """One call of the transformer; every process returns the whole of it.

        Raises
        ------
        InvalidInputError
            The calls of a step are no halves of guidance.
        UnsupportedError
            A cache of diffusers needs both halves in one process.
        """
        if args:
            kwargs = {"hidden_states": args[0], **kwargs}
        if len(args) > 1:
            raise InvalidInputError(
                "guidance=2 takes the transformer's arguments by name: name all behind the first"
            )
        self._check_caches()
        latents = kwargs["hidden_states"]
        if latents.shape[0] % 2 == 0:
            sample = self._half_of_batch(kwargs, latents.shape[0])
        elif self.unread is None:
            sample = self._first_call(kwargs, latents)
        else:
            sample = self._second_call(kwargs, self.unread)
        if not return_dict:
            return (sample,)
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=sample)

    def _run(self, kwargs: Mapping[str, Any]) -> Tensor:
        return self.transformer(**kwargs, return_dict=False)[0]

    def _half_of_batch(self, kwargs: Mapping[str, Any], batch: int) -> Tensor:
        mine = {n: half(self.model, n, v, batch, self.which) for n, v in kwargs.items()}
        return torch.cat(self._both(self._run(mine)))

    def _first_call(self, kwargs: Mapping[str, Any], latents: Tensor) -> Later:
        later = Later(self._sample_shape(latents), latents.dtype, latents.device, self._settle)
        if self.which == 0:
            later.mine = self._run(kwargs)
            if later.mine.shape != later.shape or later.mine.dtype != later.dtype:
                raise UnsupportedError(
                    f"{self.model.name} gives {tuple(later.mine.shape)} of {later.mine.dtype} for "
                    f"latents {tuple(latents.shape)} of {latents.dtype}, which guidance=2 does not "
                    "foresee; use ulysses= alone"
                )
        self.unread = later
        return later

    def _second_call(self, kwargs: Mapping[str, Any], first: Later) -> Tensor:
        shape = self._sample_shape(kwargs["hidden_states"])
        if shape != tuple(first.shape):
            raise InvalidInputError(
                f"two calls of a step have samples of {tuple(first.shape)} and {shape}, which are "
                "no halves of guidance: use guidance=1"
            )
        self.unread = None
        values = self._both(first.mine if self.which == 0 else self._run(kwargs))
        first.give(values[0])
        self.paired = True
        return values[1]

    def _settle(self) -> Tensor:
        """The result of a first call that is read before there is a second one."""
        first = self.unread
        if first is None or not self.paired:
            raise InvalidInputError(
                "guidance=2, and this step has no second half: the pipeline called its transformer "
                "once with one sample; switch guidance on (guidance_scale or true_cfg_scale above "
                "1), or use ParallelConfig(ulysses=...) alone"
            )
        self.unread = None
        value = torch.empty(first.shape, dtype=first.dtype, device=first.device)
        if self.which == 0:
            value.copy_(first.mine)
        dist.broadcast(value, group=self.group, group_src=0)
        return value

    def _both(self, mine: Tensor) -> list[Tensor]:
        values = [torch.empty_like(mine, memory_format=torch.contiguous_format) for _ in range(2)]
        dist.all_gather(values, mine.contiguous(), group=self.group)
        return values

    def _sample_shape(self, latents: Tensor) -> tuple[int, ...]:
        axes = next(given.axes for given in self.model.inputs if given.name == "hidden_states")
        config = self.transformer.config
        shape = list(latents.shape)
        channels = config.get("out_channels") or config["in_channels"]
        shape[axes.index("in_channels")] = channels
        return tuple(shape)

    def _check_caches(self) -> None:
        registry = getattr(self.transformer, "_diffusers_hook", None)
        found = registry.hooks if registry is not None else ()
        if any(name in found for name in _TOGETHER):
            raise UnsupportedError(
                "guidance=2 and a cache of diffusers that compares both halves of guidance "
                "(FasterCache, SeaCache): use another cache, or guidance=1"
            )
