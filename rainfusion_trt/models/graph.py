"""The graph of a model: what goes in, for which clips, and the diffusers call it stands for."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models.clip import VideoSize
from rainfusion_trt.models.inputs import CLIP_AXES, GraphInput, Profiles, extent_of
from rainfusion_trt.models.model_clips import ModelClips
from rainfusion_trt.models.token_cuts import TokenCuts
from rainfusion_trt.models.transformer import as_transformer


class ModelGraph(ModelClips):
    """The part of a `VideoModel` that says what its exported graph takes.

    A model states every input once, in `inputs`. Where an input is not the argument of that name of
    the diffusers transformer, the model overrides the pair of inverse functions `forward_kwargs`
    and `graph_inputs`.

    Attributes
    ----------
    inputs : tuple of GraphInput
        Inputs of the graph in its order, without `sparsity`. Example inputs, dynamic axes and the
        shapes of an engine follow from them.
    outputs : tuple of str
        Outputs of the graph, in the order in which the transformer returns them.
    noisy_inputs : tuple of str
        For each output, the argument of the transformer whose channels begin with the noisy latents
        that it is the prediction for.
    sequences : mapping
        Axes of the inputs, beside those of the clip, that may vary, such as the length of the text:
        the usual extent, or the key of the transformer's configuration that gives it.
    one_size : bool
        Whether a graph serves only the size that it was exported for.
    refused : mapping
        Arguments of the transformer that the graph has no input for, and what to do instead.
    no_pipeline : str
        Why `Pipeline` does not drive the model, and what to do instead; empty where it does.
    token_cuts : TokenCuts, optional
        Where its graph is cut for several GPUs; None where it cannot be.
    pipeline_class : str
        Class name in diffusers of the pipeline whose calls are converted.
    other_pipelines : tuple of str
        Class names of others that drive the same transformer, such as video to video.
    """

    inputs: tuple[GraphInput, ...]
    outputs: tuple[str, ...] = ("sample",)
    noisy_inputs: tuple[str, ...] = ("hidden_states",)
    sequences: Mapping[str, int | str] = {}
    one_size: bool = False
    refused: Mapping[str, str] = {}
    no_pipeline: str = ""
    token_cuts: TokenCuts | None = None
    pipeline_class: str
    other_pipelines: tuple[str, ...] = ()

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:  # noqa: B027
        """Bake into the transformer what depends on the clip's size; called before an export.

        It computes the same afterwards, for this and for other sizes.
        """

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """Extents of the axes that may vary, by name, for one clip size.

        Parameters
        ----------
        config : mapping
            The transformer's configuration.
        size : VideoSize
            In pixels.
        batch : int
            Batch of the call.

        Raises
        ------
        InvalidInputError
            The model makes no clip of that size.
        """
        latent = self._latent_size(size)
        patch = (self.patch_frames, self.patch_pixels, self.patch_pixels)
        grid = [extent // step for extent, step in zip(latent, patch, strict=True)]
        sequences = {axis: extent_of(usual, config) for axis, usual in self.sequences.items()}
        clip = zip(CLIP_AXES, (batch, *latent, *grid, math.prod(grid)), strict=True)
        return {**dict(clip), **sequences}

    def with_conditions(self, extents: Mapping[str, int], frames: int) -> dict[str, int]:
        """Extents of a clip with conditions whose tokens stand beside its own in the sequence.

        Parameters
        ----------
        extents : mapping
            As `extents` gives them.
        frames : int
            How many latent frames, as large as the clip's, have as many tokens as the conditions.

        Raises
        ------
        InvalidInputError
            The model has no such conditions, and `frames` is not 0.
        """
        if frames:
            raise InvalidInputError(
                f"condition_frames={frames}: {self.name} has no conditions beside the tokens of "
                "the clip; leave it out"
            )
        return dict(extents)

    def dynamic_axes(self) -> dict[str, dict[int, str]]:
        """Axes that may vary, as {input: {axis: name}}; empty if a graph serves one size only."""
        if self.one_size:
            return {}
        varying = {*CLIP_AXES, *self.sequences}
        axes = {
            given.name: {i: name for i, name in enumerate(given.axes) if name in varying}
            for given in self.inputs
        }
        return {name: varies for name, varies in axes.items() if varies}

    def example_inputs(
        self,
        transformer: nn.Module,
        size: VideoSize,
        *,
        batch: int,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Seeded random graph inputs for a transformer, in graph order, without `sparsity`."""
        known = as_transformer(transformer)
        return self.drawn_inputs(
            known.config, size, batch=batch, dtype=known.dtype, device=device, seed=seed
        )

    def drawn_inputs(
        self,
        config: Mapping[str, Any],
        size: VideoSize,
        *,
        batch: int,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> dict[str, Tensor]:
        """Like `example_inputs`, but from the transformer's configuration and dtype alone.

        Raises
        ------
        InvalidInputError
            The model makes no clip of that size, or the configuration is incomplete.
        """
        extents = self.extents(config, size, batch)
        grid = (extents["grid_frames"], extents["grid_height"], extents["grid_width"])
        computed = self.computed_inputs(config, grid, device)
        generator = torch.Generator(device).manual_seed(seed)
        return {
            given.name: computed[given.name]
            if given.example is None
            else given.example(given.shape(extents, config), given.dtype or dtype, generator)
            for given in self.inputs
        }

    def computed_inputs(
        self, config: Mapping[str, Any], grid: tuple[int, int, int], device: str | torch.device
    ) -> dict[str, Tensor]:
        """Values of the inputs that have no `example`: those that a pipeline computes itself.

        Parameters
        ----------
        config : mapping
            The transformer's configuration.
        grid : tuple of int
            T, H and W in tokens.
        device
            Device for the values.
        """
        return {}

    def forward_kwargs(self, graph_inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Graph inputs -> keyword arguments of the transformer's forward.

        Every input is the argument of its name, unless a model says otherwise.
        """
        return {given.name: graph_inputs[given.name] for given in self.inputs}

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Keyword arguments of the transformer's forward -> graph inputs (the inverse).

        Every argument of an input's name is that input, in its dtype; one value for the whole batch
        becomes one for each of its elements.

        Raises
        ------
        InvalidInputError
            An argument is missing.
        UnsupportedError
            An argument that the graph has no input for.
        """
        for name, remedy in self.refused.items():
            value = forward_kwargs.get(name)
            if value is not None and not (isinstance(value, Mapping) and not value):
                raise UnsupportedError(
                    f"{self.name}: the exported graph has no input for {name}; {remedy}"
                )
        for given in self.inputs:
            if forward_kwargs.get(given.name) is None:
                raise InvalidInputError(
                    f"{self.name}: {given.name} is missing, so the call does not come from "
                    f"{self.pipeline_class}; pass what that pipeline passes"
                )
        like = forward_kwargs["hidden_states"]
        inputs = {}
        for given in self.inputs:
            value = forward_kwargs[given.name]
            if given.axes == ("batch",):
                if isinstance(value, float):  # else it is rounded to torch's default type
                    value = torch.tensor(value, dtype=torch.float32)
                value = torch.as_tensor(value, device=like.device).expand(like.shape[0])
            inputs[given.name] = value.to(given.dtype or like.dtype)
        return inputs

    def check_extents(self, inputs: Mapping[str, Tensor]) -> None:
        """Refuse a call whose tensors disagree on an axis, such as the batch.

        Each may be within what the graph takes by itself, and runtimes fail deep in the graph.

        Parameters
        ----------
        inputs : mapping
            What `graph_inputs` made of it.

        Raises
        ------
        InvalidInputError
            They do.
        """
        seen: dict[str, tuple[str, int]] = {}
        for given in self.inputs:
            shape = inputs[given.name].shape if given.name in inputs else ()
            if len(shape) != len(given.axes):
                continue  # which the runtime refuses with the shape that it takes
            for axis, extent in zip(given.axes, shape, strict=True):
                if axis not in CLIP_AXES and axis not in self.sequences:
                    continue
                first, size = seen.setdefault(str(axis), (given.name, extent))
                if extent != size:
                    raise InvalidInputError(
                        f"{self.name}: {axis} is {size} in {first} and {extent} in {given.name}: "
                        "give tensors of one call"
                    )

    def check_room(  # noqa: B027
        self, inputs: Mapping[str, Tensor], profiles: Profiles
    ) -> None:
        """Refuse a call that a graph has no room for, where the shapes alone do not say what to do.

        Parameters
        ----------
        inputs : mapping
            What `graph_inputs` made of it.
        profiles : sequence of mapping
            What the graph takes.

        Raises
        ------
        UnsupportedError
            It has not.
        """

    def eager(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> tuple[Tensor, ...]:
        """One forward of the transformer's own: a tensor for each of `outputs`."""
        return transformer(**forward_kwargs, return_dict=False)[: len(self.outputs)]

    def call(
        self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]
    ) -> Tensor | tuple[Tensor, ...]:
        """One forward as it is traced: the transformer's own, unless no graph can hold that.

        Returns
        -------
        Tensor or tuple of Tensor
            One for each of `outputs`; where there is one, it may stand alone.
        """
        return self.eager(transformer, forward_kwargs)

    def result(self, outputs: tuple[Tensor, ...]) -> Any:
        """What the transformer returns with ``return_dict=True``, of the tensors of `outputs`."""
        from diffusers.models.modeling_outputs import Transformer2DModelOutput

        return Transformer2DModelOutput(sample=outputs[0])

    def parts(self, config: Mapping[str, Any]) -> dict[str, nn.Module]:
        """Parts without weights that pipelines use of a transformer beside its call, by name.

        What stands for the transformer in a pipeline has them too.

        Parameters
        ----------
        config : mapping
            The transformer's whole configuration.
        """
        return {}
