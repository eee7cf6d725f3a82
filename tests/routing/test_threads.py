"""Two threads with one transformer: never a clip by the grid of the other thread's."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

import rainfusion_trt
from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.models import VideoSize
from tests.helpers.plain_dit import PlainDiT, example
from tests.helpers.routed_models import call_of, run, tiny

pytestmark = pytest.mark.usefixtures("one_thread")


class Meeting:
    """While the first thread is in `early`, the second runs until it is in `late`."""

    def __init__(self, early, late) -> None:
        self.second: threading.Thread | None = None
        self.met, self.go_on = threading.Event(), threading.Event()
        early.register_forward_pre_hook(self._early)
        late.register_forward_pre_hook(self._late)

    def _early(self, *_) -> None:
        if threading.current_thread() is not self.second and not self.second.ident:
            self.second.start()
            self.met.wait(60)

    def _late(self, *_) -> None:
        if threading.current_thread() is self.second:
            self.met.set()
            self.go_on.wait(60)

    def of(self, first, second):
        """What each has for a result, or its error."""
        results = {}

        def kept(name, function):
            try:
                results[name] = function()
            except RainFusionError as error:
                results[name] = error
            self.met.set()

        self.second = threading.Thread(target=kept, args=("second", second))
        kept("first", first)
        self.go_on.set()
        self.second.join()
        return results["first"], results["second"]


def test_the_forward_that_was_there_first_is_an_error():
    """Both grids have as many tokens, so that no length shows which is whose."""
    model, transformer = tiny("wan2.1-1.3b")
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    wide, high = (
        call_of(model, transformer, VideoSize(25, *sides)) for sides in ((64, 128), (128, 64))
    )
    alone = run(transformer, high)
    expected = run(copy.deepcopy(transformer), wide)
    meeting = Meeting(transformer.blocks[0], transformer.blocks[-1])
    first, second = meeting.of(lambda: run(transformer, wide), lambda: run(transformer, high))
    assert isinstance(first, RainFusionError) and "take turns" in str(first)
    assert torch.equal(second, alone)
    assert torch.equal(run(transformer, wide), expected)  # by itself again


def test_attention_found_by_its_tokens_belongs_to_the_first_thread():
    torch.manual_seed(0)
    module, call = PlainDiT().eval().requires_grad_(False), example(7, 16, 16)
    rainfusion_trt.enable(module, grid=(7, 8, 8), sparsity=0.8, method="rainfusion")
    alone = module(**call)
    meeting = Meeting(module.self_attention[0], module.out)
    first, second = meeting.of(lambda: module(**call), lambda: module(**call))
    assert torch.equal(first, alone)
    assert isinstance(second, RainFusionError) and "take turns" in str(second)
    assert torch.equal(module(**call), alone)
    assert not torch.overrides._get_current_function_mode_stack()
