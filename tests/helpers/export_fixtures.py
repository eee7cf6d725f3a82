"""Types that the fixtures of these tests return."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from rainfusion_trt.export import ExportReport
from rainfusion_trt.models import VideoModel


@dataclass(frozen=True)
class Exported:
    model: VideoModel
    transformer: nn.Module
    report: ExportReport

    @property
    def path(self) -> Path:
        return self.report.path
