"""A fixed linear codec with the latent geometry of CogVideoX's VAE, for the demo model.

Each 8 x 8 patch of pixels becomes 16 numbers, its principal components; after the first frame,
four frames are averaged into one. Nothing in it is trained by gradient descent, and it weighs
some ten kilobytes.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.autoencoders.vae import DecoderOutput
from torch import Tensor, nn

from rainfusion_trt.errors import InvalidInputError

PATCH = 8  # pixels a latent row or column
FRAMES = 4  # pixel frames a latent frame, after the first


class PatchCodec(ModelMixin, ConfigMixin):
    """Principal components of pixel patches; takes the place of `AutoencoderKLCogVideoX`.

    `save_pretrained` and `from_pretrained` are diffusers' own (safetensors).

    Parameters
    ----------
    latent_channels : int
        Components kept of a patch's 3 * 8 * 8 values.
    block_out_channels : tuple of int
        Read by `CogVideoXPipeline`, which takes 2 ** (its length - 1) as the spatial compression.
    temporal_compression_ratio : int
        Read by the pipeline as well.
    scaling_factor : float
        Read by the pipeline as well; latents have unit variance already.
    """

    @register_to_config
    def __init__(
        self,
        latent_channels: int = 16,
        block_out_channels: tuple[int, ...] = (1, 1, 1, 1),
        temporal_compression_ratio: int = FRAMES,
        scaling_factor: float = 1.0,
    ) -> None:
        super().__init__()
        if not 1 <= latent_channels <= 3 * PATCH * PATCH:
            raise InvalidInputError(
                f"latent_channels={latent_channels} must be between 1 and {3 * PATCH * PATCH}"
            )
        basis = torch.eye(latent_channels, 3 * PATCH * PATCH)
        self.basis = _fixed(basis.view(latent_channels, 3, PATCH, PATCH))
        self.mean = _fixed(torch.zeros(3, PATCH, PATCH))
        self.deviation = _fixed(torch.ones(latent_channels))

    @classmethod
    def fit(cls, clips: Iterable[Tensor], *, latent_channels: int = 16) -> PatchCodec:
        """The codec whose components explain most of the clips' variance.

        Parameters
        ----------
        clips : iterable of Tensor
            uint8 [F, 3, H, W], whole patches high and wide, four frames or more.
        latent_channels : int
            Components kept.

        Returns
        -------
        PatchCodec
            float32 on the CPU. Every latent channel has unit variance over the clips.

        Raises
        ------
        InvalidInputError
            No clips, or shapes that do not fit.
        """
        size = 3 * PATCH * PATCH
        count, total, outer = 0, torch.zeros(size).double(), torch.zeros(size, size).double()
        for clip in clips:
            whole = len(clip) // FRAMES * FRAMES
            _check(clip.shape[-2], clip.shape[-1])
            if not whole:
                raise InvalidInputError(f"a clip has {len(clip)} frames, {FRAMES} are needed")
            averages = to_float(clip[:whole]).unflatten(0, (-1, FRAMES)).mean(1)
            patches = F.unfold(averages, PATCH, stride=PATCH).transpose(1, 2).reshape(-1, size)
            patches = patches.double()
            count += len(patches)
            total += patches.sum(0)
            outer += patches.T @ patches
        if not count:
            raise InvalidInputError("no clips to fit the codec to")
        mean = total / count
        variances, vectors = torch.linalg.eigh(outer / count - mean.outer(mean))
        kept = slice(size - latent_channels, None)
        codec = cls(latent_channels=latent_channels)
        basis = vectors[:, kept].T.flip(0)
        # Eigenvectors have no sign of their own: one rule for it makes fits comparable.
        basis = basis * basis.gather(1, basis.abs().argmax(1, keepdim=True)).sign()
        codec.basis.copy_(basis.view_as(codec.basis))
        codec.mean.copy_(mean.view_as(codec.mean))
        # A channel without variance (a constant clip) stays as it is instead of dividing by zero.
        codec.deviation.copy_(variances[kept].flip(0).clamp(min=0).sqrt().clamp(min=1e-4))
        return codec.eval()

    def encode(self, video: Tensor) -> Tensor:
        """Latents of a video.

        Parameters
        ----------
        video : Tensor
            [B, 3, F, H, W] in [-1, 1]; F = 4k + 1.

        Returns
        -------
        Tensor
            [B, C, k + 1, H / 8, W / 8]. Unlike the VAE there is no distribution to draw from.
        """
        if (video.shape[2] - 1) % FRAMES:
            raise InvalidInputError(f"{video.shape[2]} frames are not 4k + 1, such as 49")
        frames = self.encode_frames(video.transpose(1, 2).flatten(0, 1))
        return pool_frames(frames.unflatten(0, (video.shape[0], -1))).transpose(1, 2)

    def encode_frames(self, frames: Tensor) -> Tensor:
        """Latents [N, C, H / 8, W / 8] of single frames [N, 3, H, W]; `pool_frames` comes after."""
        _check(frames.shape[-2], frames.shape[-1])
        weight = self.basis / self.deviation.view(-1, 1, 1, 1)
        bias = -(weight * self.mean).sum((1, 2, 3))
        return F.conv2d(frames.to(self.dtype), weight, bias, stride=PATCH)

    def decode(self, z: Tensor, return_dict: bool = True) -> DecoderOutput | tuple[Tensor]:
        """The video [B, 3, F, H, W] of latents [B, C, T, h, w], F = 4 (T - 1) + 1.

        The four frames of a latent frame are equal. Values are not clipped to [-1, 1].
        """
        repeats = torch.full((z.shape[2],), FRAMES, device=z.device)
        repeats[0] = 1
        frames = z.to(self.dtype).transpose(1, 2).flatten(0, 1)
        weight = self.basis * self.deviation.view(-1, 1, 1, 1)
        pixels = F.conv_transpose2d(frames, weight, stride=PATCH)
        pixels = pixels + self.mean.repeat(1, z.shape[3], z.shape[4])
        video = pixels.unflatten(0, (z.shape[0], -1)).transpose(1, 2)
        video = video.repeat_interleave(repeats, dim=2)
        return DecoderOutput(sample=video) if return_dict else (video,)

    def pixel_error(self, difference: Tensor) -> Tensor:
        """Squared error of the pixels, in [-1, 1] units, from a difference of latents.

        Exact up to clipping, because the components are orthonormal.

        Parameters
        ----------
        difference : Tensor
            [..., C, h, w].

        Returns
        -------
        Tensor
            Scalar: the mean over all latent frames and pixels.
        """
        weighted = difference.float().square() * self.deviation.float().square().view(-1, 1, 1)
        return weighted.mean() * self.config.latent_channels / (3 * PATCH * PATCH)


def pool_frames(frames: Tensor) -> Tensor:
    """Average four frames into one, the first alone: [B, 4k + 1, ...] to [B, k + 1, ...]."""
    rest = frames[:, 1:].unflatten(1, (-1, FRAMES)).mean(2) if frames.shape[1] > 1 else None
    return frames[:, :1] if rest is None else torch.cat([frames[:, :1], rest], 1)


def to_float(frames: Tensor) -> Tensor:
    """uint8 pixels as float32 in [-1, 1]."""
    return frames.float() / 127.5 - 1.0


def _fixed(values: Tensor) -> nn.Parameter:
    return nn.Parameter(values, requires_grad=False)


def _check(height: int, width: int) -> None:
    if height % PATCH or width % PATCH or not height or not width:
        raise InvalidInputError(
            f"height={height}, width={width} must be multiples of {PATCH}, the codec's patch"
        )
