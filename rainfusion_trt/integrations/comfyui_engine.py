"""ComfyUI: an engine or exported graph in the place of a loaded Wan.

Nothing of ComfyUI is imported. The node gives a clone of its ``ModelPatcher`` whose
``diffusion_model`` is an `EngineModel`, by ComfyUI's own patch of objects. So its sampler, guidance
and conditioning go on as they were, and the weights of the checkpoint stay in host memory. What an
engine has no input for is an error.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.integrations.comfyui import KEY, OVERRIDE, Wanted, is_dense_step
from rainfusion_trt.models import VideoModel, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.base import Backend
from rainfusion_trt.runtime.denoiser import GraphDenoiser
from rainfusion_trt.runtime.graphs import graph_of_engine, graph_of_onnx
from rainfusion_trt.runtime.plan import why_dense
from rainfusion_trt.runtime.precision import possible_precision

_NAME = "diffusion_model"
_ON_PRE_RUN = "on_pre_run"  # ComfyUI's name of the moment before sampling
_TAKEN = ("context", "clip_fea", "transformer_options")  # of a forward, beside x and timestep


class EngineModel(nn.Module):
    """Stands for ComfyUI's ``WanModel`` and runs an exported graph.

    Parameters
    ----------
    original
        The model, whose other attributes it has; its weights are none of this module's.
    denoiser, model
        The loaded graph, and what it is of.
    wanted
        Sparsity and dense steps.
    """

    def __init__(
        self, original: Any, denoiser: GraphDenoiser, model: VideoModel, wanted: Wanted
    ) -> None:
        super().__init__()
        self._hidden = (original,)  # in a tuple, and so no child of this module
        self._denoiser = denoiser
        self._model = model
        self._wanted = wanted
        shape = denoiser.backend.inputs["hidden_states"].max_shape
        self._most = shape[0]  # clips that the graph takes at once

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["_hidden"][0], name)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        clip_fea: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
        **others: Any,
    ) -> Tensor:
        """What ComfyUI's own forward gives: the velocity of `x` [B, C, T, H, W].

        Raises
        ------
        UnsupportedError
            A conditioning or a patch that the graph has no input for.
        InvalidInputError
            A size that it does not take.
        """
        options = transformer_options or {}
        _refuse_conditioning(others)
        _refuse_patches(options)
        patch = self._model.patch_pixels
        if x.shape[-2] % patch or x.shape[-1] % patch:
            pixels = patch * self._model.vae_pixels
            raise InvalidInputError(
                f"RainFusion engine: latents of {x.shape[-1]}x{x.shape[-2]} are no whole tokens: "
                f"give a width and a height that are multiples of {pixels}"
            )
        if context is None:
            raise InvalidInputError("RainFusion engine: the model is called without a text")
        call = {
            "hidden_states": x,
            "timestep": self._timesteps(timestep, x),
            "encoder_hidden_states": context,
        }
        if clip_fea is not None:
            call["encoder_hidden_states_image"] = clip_fea
        self._set_sparsity(options, call)
        count = len(x)
        most = count if self._most is None else min(self._most, count)
        parts = [
            self._run({name: value[start : start + most] for name, value in call.items()})
            for start in range(0, count, most)
        ]
        return torch.cat(parts).to(x.dtype)

    def _run(self, call: dict[str, Tensor]) -> Tensor:
        images = call.get("encoder_hidden_states_image")
        if images is not None:  # two of a clip are one row here, and two in diffusers
            call["encoder_hidden_states_image"] = images.reshape(-1, 257, images.shape[-1])
        return self._denoiser.component(**call, return_dict=False)[0]

    def _timesteps(self, timestep: Tensor, x: Tensor) -> Tensor:
        """One of each clip, or of each token where ComfyUI has one of each latent frame."""
        if "video_tokens" not in _axes(self._model, "timestep"):
            return timestep.expand(len(x)) if timestep.dim() < 2 else timestep
        frames, height, width = x.shape[2:]
        patch = self._model.patch_pixels
        if timestep.dim() < 2:
            timestep = timestep.view(-1, 1).expand(len(x), frames)
        return timestep.repeat_interleave((height // patch) * (width // patch), dim=1)

    def _set_sparsity(self, options: Mapping[str, Any], call: Mapping[str, Any]) -> None:
        wanted, sparsity = self._wanted, self._wanted.sparsity
        if sparsity > 0.0 and is_dense_step(wanted, options):
            sparsity = 0.0
        if sparsity > 0.0:
            obstacle = why_dense(
                self._model, wanted.settings, self._denoiser.component, call, sparsity
            )
            if obstacle is not None:
                wanted.refuse(obstacle)
        self._denoiser.set_sparsity(sparsity)


def replace(
    model: Any, file: str | Path, *, sparsity: float, dense_steps: int, allow_dense: bool
) -> Any:
    """A clone of a ComfyUI ``ModelPatcher`` whose diffusion model is an engine or ONNX file.

    Parameters
    ----------
    model
        A loaded Wan, of the checkpoint that was exported.
    file
        Folder of ``build-engine``, or an exported ONNX file.
    sparsity, dense_steps, allow_dense
        See `Wanted`.

    Raises
    ------
    InvalidInputError, UnsupportedError, EngineLoadError, DenseAttentionError
        The file is of another network, or cannot run here; the model is another's, or has patches.
    """
    original = model.get_model_object(_NAME)
    if isinstance(original, EngineModel):
        raise InvalidInputError("the model has a RainFusion engine already; remove one node")
    _refuse_weight_patches(model)
    path = Path(file)
    graph = graph_of_engine(path) if path.is_dir() else graph_of_onnx(path)
    known = get_model(graph.model)
    check_network(original, known, graph.account.config, graph.origin)
    settings = graph.account.settings or AttentionSettings()
    wanted = Wanted(settings, sparsity, dense_steps, allow_dense)
    backend = _load(path, torch.device(model.load_device))
    if sparsity > 0.0 and not backend.sparse:
        try:
            wanted.refuse(f"{backend.name} runs the dense body of the attention alone")
        except Exception:
            backend.close()
            raise
    denoiser = GraphDenoiser(backend, known, graph.account.config)
    # A precision of all steps: what the file says, where the backend has it.
    plan = possible_precision(None, settings.precision, denoiser)
    assert isinstance(plan, str)
    denoiser.set_precision(plan)
    patched = model.clone()
    patched.add_object_patch(_NAME, EngineModel(original, denoiser, known, wanted))
    patched.add_callback_with_key(_ON_PRE_RUN, KEY, _refuse_weight_patches)
    return patched


def check_network(original: Any, model: VideoModel, config: Mapping[str, Any], origin: str) -> None:
    """Refuse a graph that is not of the network which ComfyUI has loaded.

    Raises
    ------
    UnsupportedError
        ComfyUI's model is none that an engine may stand for.
    InvalidInputError
        It is another network.
    """
    kind = type(original).__name__
    if kind != "WanModel" or model.transformer_class != "WanTransformer3DModel":
        raise UnsupportedError(
            f"RainFusion engine: {origin} is of {model.name}, and the model in ComfyUI a {kind}; "
            "engines stand for Wan from text and from images (WanModel) alone: use the node "
            "RainFusion attention"
        )
    heads, size = config["num_attention_heads"], config["attention_head_dim"]
    said = {
        "in_dim": config["in_channels"],
        "out_dim": config["out_channels"],
        "dim": heads * size,
        "num_heads": heads,
        "num_layers": config["num_layers"],
        "ffn_dim": config["ffn_dim"],
        "text_dim": config["text_dim"],
    }
    differ = [
        f"{name} {getattr(original, name)} instead of {value}"
        for name, value in said.items()
        if getattr(original, name) != value
    ]
    if (getattr(original, "img_emb", None) is None) != (config.get("image_dim") is None):
        differ.append("image embeddings of which one of them has none")
    if getattr(original, "ref_conv", None) is not None:
        differ.append("a reference picture's layer")
    if differ:
        raise InvalidInputError(
            f"RainFusion engine: the model in ComfyUI has {', '.join(differ)} in {origin}: export "
            "and build from this checkpoint"
        )


def _load(path: Path, device: torch.device) -> Backend:
    if path.is_dir():
        from rainfusion_trt.runtime.tensorrt import TensorRTBackend

        return TensorRTBackend(path, device=device)
    from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

    return OnnxRuntimeBackend(path, device)


def _refuse_weight_patches(model: Any) -> None:
    """Of a ModelPatcher, at the node and before every sampling: LoRAs may come behind it."""
    keys = [*getattr(model, "patches", ()), *getattr(model, "weight_wrapper_patches", ())]
    hooks = getattr(model, "hook_patches", None)
    if keys or hooks:
        what = f"patches of {len(keys)} weights" if keys else "hooks of weights"
        raise UnsupportedError(
            f"RainFusion engine: the model has {what}, such as a LoRA, and the engine has its own: "
            "remove them, and export with --lora"
        )
    others = [name for name in getattr(model, "object_patches", {}) if name.startswith(f"{_NAME}.")]
    if others:
        raise UnsupportedError(
            f"RainFusion engine: another node has replaced {others[0]}, which an engine has not: "
            "remove that node"
        )


def _refuse_conditioning(others: Mapping[str, Any]) -> None:
    given = [name for name, value in others.items() if value is not None and name not in _TAKEN]
    if "control" in given:
        raise UnsupportedError(
            "RainFusion engine: a ControlNet is applied, and the engine has no input for it: "
            "remove it, or use the node RainFusion attention"
        )
    # ComfyUI hands on what other models take too: a mask of zeros and ones became the timestep.
    given = [name for name in given if name != "denoise_mask"]
    if given:
        raise UnsupportedError(
            f"RainFusion engine: the conditioning has {', '.join(sorted(given))}, and the engine "
            "no input for it: remove it, or use the node RainFusion attention"
        )


def _refuse_patches(options: Mapping[str, Any]) -> None:
    wrappers = options.get("wrappers", {}).get(_NAME, {})
    found = {
        "attention patches": options.get("patches"),
        "replaced blocks": options.get("patches_replace"),
        "an attention override": options.get(OVERRIDE),
        "wrappers of the diffusion model": any(wrappers.values()),
    }
    asked = [what for what, value in found.items() if value]
    if asked:
        raise UnsupportedError(
            f"RainFusion engine: other nodes bring {' and '.join(asked)}, which an engine makes "
            "nothing of: remove them"
        )


def _axes(model: VideoModel, name: str) -> tuple[str | int, ...]:
    return next(given.axes for given in model.inputs if given.name == name)
