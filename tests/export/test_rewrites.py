"""Graph rewrites change patterns, never values."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.export import Dim

from rainfusion_trt.export.rewrites import rewrite

pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")  # torch's own


class InPlaceRotary(nn.Module):
    def forward(self, x, text):
        x = x + 0.0
        count = text.shape[0]
        video = x[:, count:]
        real, imaginary = video.reshape(*video.shape[:-1], -1, 2).unbind(-1)
        x[:, count:] = torch.stack([-imaginary, real], dim=-1).flatten(2)
        return x


class MiddleAssignment(nn.Module):
    def forward(self, x, text):
        x = x + 0.0
        x[:, 1:3] = x[:, 1:3] * 2.0
        x[:] = x * 3.0
        return x


class ColumnAssignment(nn.Module):
    def forward(self, x, text):
        mask = x > text[0]
        mask[:, :, 0] = True
        x = torch.where(mask, x, 0.0)
        x[:, 2] = x[:, 1] * 2.0
        x[:, :, 5] = 1.0  # the last one
        return x


class VaryingSplit(nn.Module):
    def forward(self, x, text):
        first, second, third = x.split([text.shape[0], 2, x.shape[1] - text.shape[0] - 2], dim=1)
        return torch.cat([third * 2.0, first, second * 3.0], dim=1)


class WholeLookup(nn.Module):
    def forward(self, x, text):
        rows = torch.arange(x.shape[1])[None]
        return x.squeeze(1) + F.embedding(rows, x[0])


class PartialLookup(nn.Module):
    """Fewer rows than the table has: stays as it is."""

    def forward(self, x, text):
        rows = torch.arange(x.shape[1] - 1)[None]
        return x[:, 1:] + F.embedding(rows, x[0])


class LaneWrites(nn.Module):
    """Wan's rotary positions: both lanes of an empty tensor, in float32, cast back by the write."""

    def forward(self, x, text):
        x = x.half()
        first, second = x.unflatten(-1, (-1, 2)).unbind(-1)
        out = torch.empty_like(x)
        out[..., 0::2] = first * 0.5 - second.float()
        out[..., 1::2] = second * 0.5 + first.float()
        return out


class LanesInOtherOrder(nn.Module):
    def forward(self, x, text):
        out = torch.zeros_like(x)
        out[..., 1::2] = x[..., 0::2]
        out[..., 0::2] = x[..., 1::2]
        return out


class OneLaneTwice(nn.Module):
    """Not the pattern: the other lane keeps what was there."""

    def forward(self, x, text):
        out = x + 0.0
        out[..., 0::2] = x[..., 1::2]
        out[..., 0::2] = x[..., 1::2] * 2.0
        return out


class ChunkAlone(nn.Module):
    """Not the pattern: one Split is the best form of it."""

    def forward(self, x, text):
        shift, scale, gate = x.unflatten(-1, (3, 2)).chunk(3, dim=2)
        return shift + scale * gate


class UnbindOfThree(nn.Module):
    """Not the pattern: stays as it is."""

    def forward(self, x, text):
        a, b, c = x.reshape(x.shape[0], -1, 3).unbind(-1)
        return a + b * c


class UnbindOfAVector(nn.Module):
    """Scales of layers, as the control branch of Wan VACE has them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scales", torch.tensor([0.5, 2.0]))

    def forward(self, x, text):
        first, second = torch.unbind(self.scales * 2)
        return x * first + second


class EmptyPart(nn.Module):
    """Padding by as much as is missing, where nothing is."""

    def forward(self, x, text):
        nothing = x.new_zeros(x.shape[0], 0, 6)
        return torch.cat([torch.cat([x, nothing], dim=1), x, nothing], dim=1)


class RowCopies(nn.Module):
    """Parts of a packed sequence: rows that none is copied to, and rows that two are."""

    def forward(self, x, text):
        count = text.shape[0]
        out = x.new_zeros(x.shape[0], x.shape[1] + count, x.shape[2])
        out = out.index_copy(1, torch.arange(x.shape[1]).flip(0) + 2, x)
        rows = text[None, :, None].expand(x.shape[0], count, x.shape[2])
        return out.index_copy(1, torch.arange(count) * 2 + 1, rows)


class RowCopiesOverOthers(nn.Module):
    """Not the pattern: the other rows keep what was there."""

    def forward(self, x, text):
        return x.index_copy(1, torch.arange(text.shape[0]), x[:, -text.shape[0] :] * 2.0)


class RowCopiesOfTwoAxes(nn.Module):
    """Not the pattern, as a whole."""

    def forward(self, x, text):
        rows = torch.zeros(9, 6).index_copy(0, torch.arange(3), x[0, :3])
        return rows.index_copy(1, torch.arange(2) + 3, torch.ones(9, 2)) + text.sum()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("module", "gone"),
    [
        (InPlaceRotary, ("slice_scatter", "unbind", "copy.default")),
        (MiddleAssignment, ("slice_scatter", "copy.default")),
        (ColumnAssignment, ("select_scatter",)),
        (VaryingSplit, ("split",)),
        (WholeLookup, ("squeeze.dim", "embedding", "arange")),
        (PartialLookup, ()),
        (LaneWrites, ("slice_scatter", "unbind", "aten.copy.default", "empty_like")),
        (LanesInOtherOrder, ("slice_scatter", "copy.default", "zeros_like")),
        (OneLaneTwice, ()),
        (ChunkAlone, ()),
        (UnbindOfThree, ()),
        (UnbindOfAVector, ("unbind",)),
        (EmptyPart, ("new_zeros",)),
        (RowCopies, ("index_copy",)),
        (RowCopiesOverOthers, ()),
        (RowCopiesOfTwoAxes, ()),
    ],
)
def test_pattern_goes_and_values_stay(module, gone, dynamic):
    x, text = torch.randn(2, 9, 6), torch.randn(3)
    shapes = {"x": {0: Dim.DYNAMIC, 1: Dim.DYNAMIC}, "text": {0: Dim.DYNAMIC}} if dynamic else None
    program = torch.export.export(module(), (x, text), dynamic_shapes=shapes, strict=False)
    program = program.run_decompositions({})
    before = {str(n.target) for n in program.graph.nodes}
    rewrite(program)
    after = {str(n.target) for n in program.graph.nodes}
    for name in gone:
        assert any(name in target for target in before), f"{name} was never there"
        assert not any(name in target for target in after)
    assert torch.equal(program.module()(x, text), module()(x, text))
    if dynamic:
        x, text = torch.randn(3, 12, 6), torch.randn(5)
        assert torch.equal(program.module()(x, text), module()(x, text))
