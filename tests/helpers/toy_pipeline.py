"""A pipeline of the demo's kind with random weights, saved in a folder."""

from __future__ import annotations

from pathlib import Path

import torch

from rainfusion_trt.demo.codec import PatchCodec
from rainfusion_trt.demo.trained import TRAINED_CONFIG, clip_pipeline


def save_toy_pipeline(folder: Path, *, frames: int, height: int, width: int) -> Path:
    """One layer of two heads, seeded; sizes are those of the sample, in latents but for frames."""
    from diffusers import CogVideoXTransformer3DModel

    config = {**TRAINED_CONFIG, "num_attention_heads": 2, "num_layers": 1}
    config |= {"sample_frames": frames, "sample_height": height, "sample_width": width}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        transformer = CogVideoXTransformer3DModel(**config)
        pixels = (torch.rand(8, 3, 32, 32) * 255).byte()
    clip_pipeline(transformer.half(), PatchCodec.fit([pixels])).save_pretrained(folder)
    return folder
