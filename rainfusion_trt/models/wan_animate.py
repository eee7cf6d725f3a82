"""Wan 2.2 Animate: a character image moved by a pose video and a face video (arXiv 2509.14055).

The first latent frame is the reference image, which the pipeline cuts off; the segment's frames
follow. So `sink_frames=1` keeps the reference exact, and 2 also the first frames of the segment,
which those of the segment before condition. The pipeline denoises segment by segment, each a clip
of the same size, and every call gets the pose and the face of its segment.

Only the self-attention over all latent frames is RainFusion's. The face adapter's attention, from
the tokens of a latent frame to the five of its face, stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import ConfigSize, GenerationDefaults, GraphInput, VideoSize
from rainfusion_trt.models.transformer import Transformer, as_transformer
from rainfusion_trt.models.wan import FULL_IMAGE, TINY_IMAGE, Wan
from rainfusion_trt.models.wan_motion import bake_basis, draw_motion_weights, motion_vectors


class WanAnimate(Wan):
    """A Wan that adds the pose to its tokens and attends to faces between its blocks."""

    transformer_class = "WanAnimateTransformer3DModel"
    pipeline_class = "WanAnimatePipeline"
    distinctive = (*Wan.distinctive, "motion_encoder_size")

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, images=1, **options)
        self.sequences = {"pose_frames": 20, "face_frames": 77}  # those of the usual segment
        side = "motion_encoder_size"
        pose = ("batch", "latent_channels", "pose_frames", "height", "width")
        self.inputs += (
            GraphInput("pose_hidden_states", pose),
            GraphInput("face_pixel_values", ("batch", 3, "face_frames", side, side)),
        )

    def _token_cuts(self) -> None:
        """The face adapter counts the tokens of a frame."""

    def config(self, size: ConfigSize = "full", *, layers: int | None = None) -> dict[str, Any]:
        """Fewer layers adapt faces as rarely as they can: diffusers needs it to come out even."""
        config = super().config(size, layers=layers)
        depth, usual = config["num_layers"], config["inject_face_latents_blocks"]
        every = max(step for step in range(1, usual + 1) if depth % step == 0)
        return {**config, "inject_face_latents_blocks": every}

    def create(
        self,
        config: Mapping[str, Any],
        *,
        dtype: torch.dtype,
        device: str | torch.device = "cpu",
        seed: int = 0,
    ) -> Transformer:
        transformer = super().create(config, dtype=dtype, device=device, seed=seed)
        draw_motion_weights(transformer.motion_encoder)
        return transformer

    # -- the graph ------------------------------------------------------------------------------

    def _latent_frames(self, frames: int) -> int:
        """Those of a segment, and the reference image in front."""
        return super()._latent_frames(frames) + 1

    def extents(self, config: Mapping[str, Any], size: VideoSize, batch: int) -> dict[str, int]:
        """A pose for each latent frame of the segment, a face for each of its frames."""
        extents = super().extents(config, size, batch)
        return {**extents, "pose_frames": extents["frames"] - 1, "face_frames": size.frames}

    def graph_inputs(self, forward_kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        """Also check that poses and faces are those of the latents' frames."""
        inputs = super().graph_inputs(forward_kwargs)
        names = ("hidden_states", "pose_hidden_states", "face_pixel_values")
        frames, poses, faces = (inputs[name].shape[2] for name in names)
        if (poses, faces) != (frames - 1, 4 * (frames - 2) + 1):
            raise InvalidInputError(
                f"{self.name}: {frames} latent frames come with {poses} of the pose and {faces} "
                f"faces, the graph takes {frames - 1} and {4 * (frames - 2) + 1}; give a pose and "
                "a face for each frame of the segment"
            )
        return inputs

    def prepare(self, transformer: nn.Module, size: VideoSize) -> None:
        """Bake the basis of the motion encoder, which is orthogonalised weights."""
        bake_basis(as_transformer(transformer).motion_encoder)

    def call(self, transformer: nn.Module, forward_kwargs: Mapping[str, Any]) -> Tensor:
        """The transformer's forward with all faces in one batch and the baked basis.

        Diffusers encodes the faces in batches of a fixed size, which would make the number of
        nodes depend on the clip, and orthogonalises in every call, for which ONNX has no operator.
        """
        parts = as_transformer(transformer)
        latents, pose = forward_kwargs["hidden_states"], forward_kwargs["pose_hidden_states"]
        pixels = forward_kwargs["face_pixel_values"]
        batch, frames = latents.shape[0], latents.shape[2]
        # Torch then reckons with one number of frames, and need not prove what it cannot know.
        torch._check(frames == pose.shape[2] + 1)
        torch._check(pixels.shape[2] == 4 * pose.shape[2] - 3)
        rotary = parts.rope(latents)
        video = parts.patch_embedding(latents)
        pose = parts.pose_patch_embedding(pose)
        video = torch.cat([video[:, :, :1], video[:, :, 1:] + pose], dim=2)
        rows, columns = video.shape[3:]
        video = video.flatten(2).transpose(1, 2)
        temb, projected, text, image = parts.condition_embedder(
            forward_kwargs["timestep"],
            forward_kwargs["encoder_hidden_states"],
            forward_kwargs["encoder_hidden_states_image"],
        )
        projected = projected.unflatten(1, (6, -1))
        context = torch.cat([image, text], dim=1)
        faces = _faces(parts, pixels)

        every = parts.config.inject_face_latents_blocks
        for index, block in enumerate(parts.blocks):
            video = block(video, context, projected, rotary)
            if index % every == 0:
                video = parts.face_adapter[index // every](video, faces) + video

        shift, scale = (parts.scale_shift_table + temb.unsqueeze(1)).chunk(2, dim=1)
        video = (parts.norm_out(video.float()) * (1 + scale) + shift).type_as(video)
        patches = parts.proj_out(video).reshape(
            batch, frames, rows, columns, *parts.config.patch_size, -1
        )
        patches = patches.permute(0, 7, 1, 4, 2, 5, 3, 6)
        return patches.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _faces(parts: Transformer, pixels: Tensor) -> Tensor:
    """Tokens of the faces, [B, frames, tokens, C]; zeros for the reference image."""
    batch, _, count = pixels.shape[:3]
    motion = motion_vectors(parts.motion_encoder, pixels.transpose(1, 2).flatten(0, 1))
    faces = parts.face_encoder(motion.reshape(batch, count, -1))
    return torch.cat([torch.zeros_like(faces[:, :1]), faces], dim=1)


WAN_2_2_ANIMATE_14B = WanAnimate(
    "wan2.2-animate-14b",
    full={**FULL_IMAGE, "latent_channels": 16, "motion_encoder_size": 512}
    | {"inject_face_latents_blocks": 5},
    tiny={
        **TINY_IMAGE,
        "latent_channels": 16,
        "motion_encoder_size": 16,
        "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
        "motion_style_dim": 8,
        "motion_dim": 4,
        "motion_encoder_dim": 16,
        "face_encoder_hidden_dim": 16,
        "face_encoder_num_heads": 2,
        "inject_face_latents_blocks": 2,
    },
    defaults=GenerationDefaults(VideoSize(77, 720, 1280), 20, 1.0, torch.bfloat16, 30),
)
