"""Heads in two groups, of which one attends while the other one's tokens travel: the same bits."""

from __future__ import annotations

import itertools
import re
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import rainfusion_trt
from rainfusion_trt.models import VideoSize
from rainfusion_trt.parallel.spread import spread, unspread
from rainfusion_trt.routing import head_exchange, parallel
from rainfusion_trt.routing.compiled import compile_blocks, keep_order
from rainfusion_trt.routing.density import DensityMeter
from rainfusion_trt.routing.head_exchange import HeadExchange
from rainfusion_trt.routing.parallel import Ulysses
from rainfusion_trt.routing.site import Tokens
from tests.helpers.live_memory import peak_bytes
from tests.helpers.process_group import in_processes, one_of
from tests.helpers.routed_models import run
from tests.routing.test_parallel import _call, _model

GRID, TEXT, SIZE = (3, 5, 7), 11, 4  # tokens that neither 2 nor 3 divides
WIDE = VideoSize(25, 112, 224)  # of windows that do not all meet
PLACES = {"none": 0, "first": TEXT, "last": TEXT}


def _group() -> Any:
    import torch.distributed as dist

    return dist.distributed_c10d._get_default_group()


def _ulysses(groups: int) -> Ulysses:
    group = _group()
    return Ulysses(group, group.size(), group.rank(), groups)


def _tokens(place: Any) -> Tokens:
    return Tokens(torch.empty(GRID), place, PLACES[place], False)


def _own(ulysses: Ulysses, tokens: Tokens, whole: Tensor) -> Tensor:
    """This device's tokens [B, S of it, N, D], its text before or behind its video."""
    video, text = tokens.grid.numel(), tokens.text_tokens
    sizes = [text, video] if tokens.text == "first" else [video, text]
    return torch.cat([ulysses.part(part, dim=1) for part in whole.split(sizes, dim=1)], dim=1)


def _mixed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of every head by itself, and of tokens of all devices."""
    return q + 2 * k.flip(1) - v.roll(1, dims=1)


def _exchanged(rank: int) -> list[tuple[Any, ...]]:
    """By heads, batch and place: calls of attention, and whether each device has its tokens."""
    found = []
    for heads, batch, place in itertools.product((3, 4, 5, 7, 8), (1, 2), PLACES):
        generator = torch.Generator().manual_seed(heads)
        shape = (batch, _tokens(place).total(), heads, SIZE)
        whole = [torch.randn(shape, generator=generator) for _ in range(3)]
        for groups in (1, 2):
            calls: list[int] = []

            def attend(*qkv: Tensor, calls: list[int] = calls) -> Tensor:
                calls.append(qkv[0].shape[2])
                return _mixed(*qkv)

            ulysses, tokens = _ulysses(groups), _tokens(place)
            own = [_own(ulysses, tokens, x) for x in whole]
            answer = ulysses.attention(tokens, *own, attend)
            wanted = _own(ulysses, tokens, _mixed(*whole))
            assert sum(calls) == ulysses.own(heads)
            found.append((heads, groups, len(calls), torch.equal(answer, wanted)))
    return found


@pytest.mark.parametrize("world", [2, 3])
def test_every_device_gets_its_tokens_whatever_divides(world):
    for found in in_processes(_exchanged, world):
        assert len(found) == 5 * 2 * 3 * 2
        for heads, groups, calls, same in found:
            assert same
            # One group on all devices alike where one of them has a single head.
            assert calls == (groups if heads // world >= 2 else 1)


class _Layer:
    """In the place of collectives: notes the order, and keeps what is sent until waited for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self._sent: dict[int, Tensor] = {}
        layer = self

        def start(row: HeadExchange, x: Tensor, sent: list[int], received: list[int]) -> Tensor:
            layer.seen.append("send")
            arriving = torch.empty(sum(received), dtype=x.dtype)
            layer._sent[id(arriving)] = x.view_as(x)
            return arriving

        def at_once(
            row: HeadExchange,
            parts: list[Tensor],
            after: Tensor | None,
            sent: list[Any],
            received: list[list[int]],
        ) -> Tensor:
            layer.seen.append("exchange")
            return torch.empty(sum(map(sum, received)), dtype=parts[0].dtype)

        monkeypatch.setattr(HeadExchange, "_start", start)
        monkeypatch.setattr(HeadExchange, "_exchange_runs", at_once)
        for module in (head_exchange, parallel):
            monkeypatch.setattr(module, "wait", self.wait)

    def wait(self, arriving: Tensor) -> Tensor:
        self.seen.append("wait")
        del self._sent[id(arriving)]
        return arriving

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.seen.append("attend")
        return q.clone()


def _inputs(place: str) -> tuple[Tokens, Tensor, Tensor, Tensor]:
    ulysses, tokens = Ulysses(None, 2, 0), _tokens(place)
    q, k, v = (_own(ulysses, tokens, torch.randn(1, tokens.total(), 8, 64)) for _ in range(3))
    return tokens, q, k, v


def test_the_second_group_travels_while_the_first_one_attends(monkeypatch):
    layer = _Layer(monkeypatch)
    Ulysses(None, 2, 0).attention(*_inputs("last"), layer.attend)
    assert layer.seen == ["exchange"] * 3 + ["attend", "exchange"]
    layer.seen.clear()
    Ulysses(None, 2, 0).attention(*_inputs("none"), layer.attend)
    assert layer.seen == ["send", "wait"] * 3 + ["attend", "send", "wait"]
    layer.seen.clear()
    Ulysses(None, 2, 0, 2).attention(*_inputs("last"), layer.attend)
    assert layer.seen == [
        *["send", "wait"],  # the first group's q, k and v
        "send",  # the second one's
        "attend",
        "send",  # the first one's output
        "wait",
        "attend",
        "send",
        *["wait"] * 2,
    ]


@pytest.mark.parametrize("place", PLACES)
def test_memory_grows_by_one_buffer_at_most(monkeypatch, place):
    """Of the size of q; what is sent lives until it was waited for, as with NCCL."""
    layer, inputs = _Layer(monkeypatch), _inputs(place)
    in_turn, overlapping = (
        peak_bytes(partial(Ulysses(None, 2, 0, groups).attention, *inputs, layer.attend))
        for groups in (1, 2)
    )
    # In turn: q and k whole, v sent and arriving.
    assert 3 * inputs[1].nbytes < in_turn < overlapping <= in_turn + inputs[1].nbytes


_CASES = {
    2: (
        ("wan2.1-1.3b", 4, 1, {"method": "piecewise", "precision": "8bit"}),
        ("cogvideox-5b", 5, 2, {"method": "rainfusion2"}),
        ("hunyuanvideo", 7, 1, {"method": "piecewise"}),
    ),
    3: (
        ("wan2.1-1.3b", 6, 2, {"method": "rainfusion_plus"}),
        ("cogvideox-5b", 7, 2, {"method": "rainfusion"}),
        ("hunyuanvideo", 8, 2, {"method": "rainfusion"}),
    ),
}


def _transformers(rank: int) -> dict[str, Any]:
    """Answers, reports and densities without and with groups."""
    from torch.distributed.device_mesh import init_device_mesh

    world = _group().size()
    mesh = init_device_mesh("cpu", (1, world), mesh_dim_names=("ring", "ulysses"))
    found = {}
    for name, heads, batch, settings in _CASES[world]:
        model, transformer = _model(name, num_attention_heads=heads)
        wide = settings["method"] == "piecewise"
        call = _call(model, transformer, batch, WIDE if wide else None)
        routing = rainfusion_trt.enable(transformer, sparsity=0.0, model=model.name, **settings)
        routing.meter = DensityMeter()
        dense = run(transformer, call)
        routing.sparsity = 0.6
        answers = []
        for groups in (1, 2):
            spread(routing, transformer, mesh, head_groups=groups)
            assert Ulysses.of(transformer._parallel_config).groups == groups
            output = run(transformer, call)
            density = float(routing.meter.total) / len(routing.sites)
            answers.append((output, routing.report(), density))
            if groups == 2 and name == "cogvideox-5b":
                for site in routing.sites:
                    site.block.compile(backend="eager", fullgraph=True)
                assert torch.equal(run(transformer, call), output)
                assert float(routing.meter.total) / len(routing.sites) == pytest.approx(density)
            unspread(transformer)
        (one, report, density), (two, report_2, density_2) = answers
        assert (one - dense).abs().max() > 1e-3  # the effect of the sparsity
        assert report == report_2 and len(report.routed) == len(routing.sites)
        found[name] = torch.equal(one, two), density, density_2
    return found


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_transformers_give_the_same_bits(world):
    for found in in_processes(_transformers, world):
        assert len(found) == 3
        for name, (same, density, density_2) in found.items():
            assert same, name
            # Means of two groups instead of one: roundings of numbers below 1.
            assert 0.0 < density < 1.0 and density == pytest.approx(density_2, abs=1e-6), name


def _by_inductor(rank: int) -> list[list[str]]:
    """The order of what every graph of a compiled transformer sends, waits for and attends to.

    As one of two processes, of which there is no other: nothing is sent, and Inductor's kernels,
    which a compiler of C++ would take a minute for, do nothing.
    """
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.utils import run_and_get_code
    from torch.distributed.device_mesh import init_device_mesh

    AsyncCompile.cpp_pybinding = lambda *_args, **_kwargs: lambda *_: None
    model, transformer = _model("hunyuanvideo")
    call = _call(model, transformer, 1, WIDE)
    routing = rainfusion_trt.enable(transformer, sparsity=0.6, model=model.name)
    with one_of(2):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
        spread(routing, transformer, mesh, head_groups=2)
        assert compile_blocks(routing)
        keep_order(routing)
        _, sources = run_and_get_code(run, transformer, call)
    names = r"_c10d_functional\.(all_to_all)_single\.default\("
    names += r"|_c10d_functional\.(wait)_tensor\.default\(|ops\.rainfusion\.(attention)\.default\("
    orders = [["".join(found) for found in re.findall(names, source)] for source in sources]
    return [order for order in orders if order]


@pytest.mark.slow
def test_a_compiled_block_keeps_the_order():
    """Which Inductor changes to save memory, in one kind of block of HunyuanVideo, by default."""
    (orders,) = in_processes(_by_inductor, 1, group=False)
    assert len(orders) >= 2  # kinds of blocks
    for order in orders:
        first = order.index("attention")
        second = order.index("attention", first + 1)
        assert order[:first] == ["all_to_all", "wait", "all_to_all"]
        assert order[first + 1 : second] == ["all_to_all", "wait"]


def _exchanges_of(rank: int, device: int) -> list[tuple[list[str], list[str], list[str]]]:
    """Of every compiled graph: what its exchanges give and what they come after, in their order,
    and what it attends to."""
    from torch._inductor.async_compile import AsyncCompile
    from torch._inductor.utils import run_and_get_code
    from torch.distributed.device_mesh import init_device_mesh

    AsyncCompile.cpp_pybinding = lambda *_args, **_kwargs: lambda *_: None
    model, transformer = _model("hunyuanvideo", num_attention_heads=3)
    call = _call(model, transformer, 1, VideoSize(9, 64, 64))
    routing = rainfusion_trt.enable(
        transformer, sparsity=0.6, model=model.name, method="rainfusion"
    )
    with one_of(2, device):
        mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
        spread(routing, transformer, mesh)
        assert compile_blocks(routing)
        _, sources = run_and_get_code(run, transformer, call)
    found = []
    for source in sources:
        names = dict(re.findall(r"^ +(buf\d+) = (buf\d+)$", source, re.MULTILINE))
        tensors = r"(buf\d+|None)\b"

        def operands(call: str, names: dict[str, str] = names, tensors: str = tensors) -> list[str]:
            return [names.get(name, name) for name in re.findall(tensors, call)]

        exchanges = re.findall(r"(\w+) = torch\.ops\.rainfusion\.exchange_runs.*?\((.*)", source)
        attends = re.findall(r"ops\.rainfusion\.attention\.default\((.*)", source)
        if attends:
            given = [name for name, _ in exchanges]
            after = [operands(call)[2] for _, call in exchanges]
            found.append((given, after, operands(attends[0])[:3]))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("device", [0, 1])
def test_compiled_devices_exchange_in_one_order(device):
    """q, k and v have as many elements: in another order one would be taken for the other.

    Of numbers of heads and of tokens that two devices have uneven parts of.
    """
    (found,) = in_processes(_exchanges_of, 1, device, group=False)
    assert len(found) >= 2  # kinds of blocks
    for given, after, (query, key, value) in found:
        assert given[:3] == [value, query, key] and len(given) == 4
        assert after == ["None", value, query, "None"]
