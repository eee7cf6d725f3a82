"""Allegro and OpenSoraPlan with random weights, for their tests."""

from __future__ import annotations

import torch
from torch import nn

from rainfusion_trt.models import VideoModel, VideoSize, get_model

ALLEGRO, OPENSORA = get_model("allegro"), get_model("opensoraplan-1.2")
NAMES = ["allegro", "opensoraplan-1.2"]


def tiny(model: VideoModel = OPENSORA, **options) -> nn.Module:
    return model.create(model.config("tiny"), dtype=torch.float32, **options)


def call_of(model: VideoModel, transformer: nn.Module, size: VideoSize, batch: int = 2) -> dict:
    return model.forward_kwargs(model.example_inputs(transformer, size, batch=batch))


@torch.no_grad()
def forward(transformer: nn.Module, call: dict) -> torch.Tensor:
    return transformer(**call, return_dict=False)[0]
