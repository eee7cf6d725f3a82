"""benchmarks.attention.precision on the CPU: what is timed, what is left out, captured layers."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import scaled_dot_product_attention

from benchmarks.attention import captured, methods, precision
from benchmarks.attention.accuracy import dense_error
from benchmarks.attention.peers.__main__ import check_peers
from benchmarks.attention.peers.__main__ import main as peers_command
from benchmarks.attention.peers.rivals import Peer
from benchmarks.attention.shapes import Shape
from rainfusion_trt.errors import InvalidInputError

CPU = torch.device("cpu")
SHAPE = Shape(1, 2, 64, (8, 12, 16), 20, "last")
EXACT = Peer("exact", "Exact 1 (a)", scaled_dot_product_attention)


def refuse(q, k, v):
    raise RuntimeError("no such kernel\nmore")


def test_rows_of_ours_cudnn_and_peers(monkeypatch):
    monkeypatch.setattr(precision, "cudnn", scaled_dot_product_attention)
    monkeypatch.setattr(precision, "graph_capture", lambda: lambda run: run)
    monkeypatch.setattr(precision, "parts_of", lambda run: {"some_kernel": 1.0})
    timed = []

    def milliseconds(run) -> float:
        timed.append(run)
        return 8.0 if run.func is scaled_dot_product_attention else 4.0

    monkeypatch.setattr(methods, "milliseconds", milliseconds)
    rounded = Peer("before", "Exact 1 (a)", refuse, lambda q, k, v: partial(torch.add, v, 0))
    wrong = Peer("wrong", "Wrong 1 (b)", lambda q, k, v: -v)
    fails = Peer("fails", "Fails 1 (c)", refuse)
    turn = precision.Turn(SHAPE, [0.8], [EXACT, rounded, wrong, fails], CPU)
    assert turn.left_out[0].startswith("before: wrong result, relative error")
    assert turn.left_out[1].startswith("wrong: wrong result, relative error")
    assert turn.left_out[2:] == ["fails: RuntimeError: no such kernel"]
    rows = precision.measure("tiny", turn, 5)
    assert len(timed) == 5 * len(rows)
    assert [(row["precision"], row["sparsity"]) for row in rows] == [
        ("cudnn", 0.0),
        ("16bit", 0.0),
        ("16bit", 0.8),
        ("8bit", 0.0),
        ("8bit", 0.8),
        ("exact", 0.0),
    ]
    by_name = {(row["precision"], row["sparsity"]): row for row in rows}
    exact, eight = by_name["exact", 0.0], by_name["8bit", 0.0]
    assert exact["version"] == "Exact 1 (a)" and "version" not in eight
    assert exact["times_cudnn"] == 1.0 and eight["times_cudnn"] == 2.0
    assert exact["density"] == 1.0 > by_name["8bit", 0.8]["density"]
    assert exact["tflops"] == round(SHAPE.dense_work / 8e9, 1)
    # bfloat16 rounds to 2^-9 at most, e4m3 to 2^-4.
    assert 0 < exact["relative_error"] < 2**-8 < eight["relative_error"] < 2**-4
    assert "relative_error" not in by_name["8bit", 0.8]
    assert "parts_ms" in exact and "parts_ms" not in by_name["cudnn", 0.0]


def test_a_peer_is_timed_as_it_makes_itself_ready(monkeypatch):
    """What is made beforehand is made once, outside of the timed call."""
    monkeypatch.setattr(precision, "cudnn", scaled_dot_product_attention)
    made = []

    def ready(q, k, v):
        made.append(q)
        return partial(scaled_dot_product_attention, q, k, v)

    turn = precision.Turn(SHAPE, [], [Peer("ready", "1 (a)", refuse, ready)], CPU)
    turn.runs["ready", 0.0, "all"]()
    assert len(made) == 1 and not turn.left_out


def test_a_check_tells_every_peer_and_fails(capsys):
    check_peers([EXACT], [64], CPU)
    with pytest.raises(SystemExit):
        check_peers([Peer("fails", "1 (a)", refuse), EXACT], [64], CPU)
    lines = capsys.readouterr().out.splitlines()
    assert lines[1] == "fails, D = 64: RuntimeError: no such kernel"
    assert all(line.startswith("exact, D = 64: relative error 0.00") for line in lines[::2])


@pytest.mark.parametrize(
    ("signature", "name"),
    [
        ("void cutlass::device_kernel<flash::enable_sm90<x>>(y)", "device_kernel"),
        ("void TransposePadPermuteKernel<128u, 64u, true>(x)", "TransposePadPermuteKernel"),
        ("void at::native::(anonymous namespace)::CatArray<int>(x)", "CatArray"),
        ("Memset (Device)", "Memset"),
    ],
)
def test_names_of_kernels(signature, name):
    assert precision.short_name(signature) == name


def layer(generator: torch.Generator) -> tuple[torch.Tensor, ...]:
    size = (3, SHAPE.batch, SHAPE.heads, SHAPE.layout().tokens, SHAPE.head_size)
    return torch.randn(size, generator=generator).bfloat16().unbind(0)


class TestCaptured:
    def test_errors_of_layers(self, tmp_path):
        generator = torch.Generator().manual_seed(0)
        layers = {f"block.{i}": layer(generator) for i in range(2)}
        captured.save(tmp_path / "a.safetensors", layers, SHAPE.grid, SHAPE.text)
        file = captured.Captured(tmp_path / "a.safetensors")
        assert file.sizes() == [(64, 1556)]
        before = Peer("before", "1 (a)", refuse, lambda q, k, v: refuse)
        rows = captured.errors_of(file, [EXACT, before], CPU)
        assert [(row["layer"], row["precision"]) for row in rows] == [
            (f"block.{i}", name) for i in range(2) for name in ("16bit", "8bit", "exact")
        ]
        _, eight, exact = rows[:3]
        q, k, v = layers["block.0"]
        out = scaled_dot_product_attention(q, k, v)
        assert exact["relative_error_worst"] == round(dense_error(q, k, v, out), 5)
        assert exact["version"] == "Exact 1 (a)" and exact["heads"] == 2
        assert exact["relative_error_mean"] < 2**-8 < eight["relative_error_mean"] < 2**-4
        assert eight["relative_error_mean"] <= eight["relative_error_worst"]

    def test_faults_of_a_file(self, tmp_path):
        q, k, v = layer(torch.Generator().manual_seed(0))
        path = tmp_path / "a.safetensors"

        def fault() -> str:
            with pytest.raises(InvalidInputError) as caught:
                captured.Captured(path)
            return str(caught.value)

        assert "cannot be read" in fault()
        path.write_bytes(b"no safetensors")
        assert "cannot be read" in fault()
        save_file({"a.q": q}, path)
        assert "metadata `grid` is not T,H,W" in fault()
        save_file({"a.q": q, "a.k": k}, path, {"grid": "8,12,16", "text": "last"})
        assert "layer 'a' has no q, k and v of one shape" in fault()
        captured.save(path, {"a": (q, k, v)}, (8, 12, 16), "none")
        assert "layer 'a' has 1556 tokens, grid (8, 12, 16) and text none" in fault()
        captured.save(path, {"a": (q, k, v)}, (8, 192), "last")
        assert "grid (8, 192)" in fault()
        captured.save(path, {}, (8, 12, 16))
        assert "there is no tensor" in fault()


def test_arguments_are_refused_before_a_gpu_is_looked_for(tmp_path):
    with pytest.raises(InvalidInputError, match="--flash-attention and --cutlass are needed"):
        precision.main(cutlass=Path("cutlass"))
    with pytest.raises(InvalidInputError, match="cannot be read"):
        precision.main(tensors=tmp_path / "none")
    with pytest.raises(InvalidInputError, match="known are cogvideox-5b"):
        precision.main(shapes=["none"])
    with pytest.raises(InvalidInputError, match="no sources"):
        peers_command()
