"""MiniMax-H3 under `enable`, with sequences as diffusers' blocks pack them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch._dynamo
from diffusers import MiniMaxH3Transformer3DModel

import rainfusion_trt
from rainfusion_trt import Pipeline
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model, model_of
from rainfusion_trt.operator import ops  # noqa: F401  (registers torch.ops.rainfusion)
from tests.helpers.minimax_calls import AUDIO_LATENTS, GRID, call_of
from tests.helpers.routed_parity import TOLERANCE, check_parity, outputs, relative_error

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("minimax-h3")
SITES = ("transformer_blocks.0.attn", "transformer_blocks.1.attn")


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(MODEL.config("tiny"), dtype=torch.float32)


def test_full_size():
    """Of 50 blocks, of which the two refiners of the text have attention too."""
    with torch.device("meta"):
        full = MiniMaxH3Transformer3DModel(**MODEL.config())
    assert model_of(full) is MODEL
    assert MODEL.attention_count(full.config) == len(full.transformer_blocks) == 50
    extents = MODEL.extents(MODEL.config(), MODEL.defaults.size, 1)
    assert [extents[f"grid_{axis}"] for axis in ("frames", "height", "width")] == [37, 24, 42]
    assert {name: extents[name] for name in MODEL.sequences} == MODEL.sequences
    with pytest.raises(InvalidInputError, match=r"frames=121 must be 17k \+ 5 .* such as 124"):
        MODEL.extents(MODEL.config(), VideoSize(121, 768, 1344), 1)


@pytest.mark.parametrize("task", ["text", "keyframes", "references"])
def test_only_the_generated_video_is_sparse(transformer, task, monkeypatch):
    """All that is no generated video comes before it, as the operator's text."""
    operator, seen = torch.ops.rainfusion.attention, []

    def record(*arguments):
        seen.append(arguments)
        return operator(*arguments)

    monkeypatch.setattr(torch.ops.rainfusion, "attention", record)
    for batch in (1, 2):
        check_parity(MODEL, transformer, call_of(task, batch=batch), SITES)
    call = call_of(task)
    target = call["video_indices"][-GRID[0] * GRID[1] * GRID[2] :]
    for query, _, _, grid, _, kv_len, text, *_ in seen:
        assert tuple(grid.shape) == GRID and kv_len is None and text == "first"
        # What follows the text is the generated clip and nothing else.
        others = query.shape[2] - grid.numel()
        assert torch.equal(torch.arange(others, query.shape[2]), target)


def test_examples_are_a_call_of_diffusers(transformer):
    inputs = MODEL.example_inputs(transformer, VideoSize(39, 192, 320), batch=2)
    call = MODEL.forward_kwargs(inputs)
    assert MODEL.layout(transformer, call).grid.shape == (12, 6, 10)
    check_parity(MODEL, transformer, call, SITES)


def moved(call: dict, places: torch.Tensor) -> dict:
    """The same rows in another order: `places` says where each row goes."""
    back = places.argsort()
    rows = ("timestep_indices", "token_tags", "position_ids")
    indices = ("video_indices", "audio_indices", "text_indices")
    return {**call, **{n: call[n][back] for n in rows}, **{n: places[call[n]] for n in indices}}


def test_sequences_of_another_order_are_refused(transformer):
    """The transformer itself computes the same for them; nothing here may be computed wrong."""
    call = call_of("keyframes")
    rows, clip = len(call["position_ids"]), GRID[0] * GRID[1] * GRID[2]
    order = torch.arange(rows)
    start, sound = rows - clip, rows - clip - 2 * AUDIO_LATENTS
    columns = order[start:].view(GRID).transpose(1, 2).flatten()
    wrong = {  # where each row goes
        "text last": order.roll(30),
        "sound last": torch.cat([order[: start - 9], order[-9:], order[start - 9 : -9]]),
        "sound within": torch.cat(
            [order[: start - 9], order[-209:-200], order[start - 9 : -209], order[-200:]]
        ),
        "column by column": torch.cat([order[:start], columns]),
        "keyframes next to the clip": torch.cat(
            [order[:30], order[30:sound] + start - sound, order[sound:start] - sound + 30]
            + [order[start:]]
        ),
    }
    dense = outputs(transformer, call)
    rainfusion_trt.enable(transformer, sparsity=0.0)
    try:
        for name, places in wrong.items():
            other = moved(call, places)
            with pytest.raises(UnsupportedError, match="one generated clip as the last") as error:
                outputs(transformer, other)
            assert "\n" not in str(error.value), name
    finally:
        rainfusion_trt.disable(transformer)
    for places in wrong.values():
        assert relative_error(outputs(transformer, moved(call, places)), dense) < TOLERANCE


def test_blocks_compile_and_the_whole_says_why_not():
    """Each block is a full graph; reading the grid can be in none."""
    transformer = MODEL.create(MODEL.config("tiny", layers=1), dtype=torch.float32)
    call = call_of("keyframes")
    rainfusion_trt.enable(transformer, sparsity=0.5, method="rainfusion")
    sparse = outputs(transformer, call)
    whole = torch.compile(transformer, backend="eager", fullgraph=True)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile_repeated_blocks"):
        outputs(whole, call)
    torch._dynamo.reset()
    transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert relative_error(outputs(transformer, call), sparse) < TOLERANCE
    torch._dynamo.reset()


def test_graph_inputs_are_a_call_with_its_grid(transformer):
    """Forward and back; as diffusers packs it, in float64 and with the levels that it has."""
    call = call_of("keyframes")
    inputs = MODEL.graph_inputs(call)
    assert list(inputs) == [given.name for given in MODEL.inputs]
    assert inputs["grid"].shape == GRID
    assert inputs["position_ids"].dtype == torch.float32
    steps = call["timestep"]  # clip, sound and keyframes
    assert len(steps) == 3 and torch.equal(inputs["timestep"], torch.cat([steps, steps[-1:]]))
    again = MODEL.forward_kwargs(inputs)
    assert relative_error(outputs(transformer, again), outputs(transformer, call)) < TOLERANCE
    for name, tensor in MODEL.graph_inputs(again).items():
        assert torch.equal(tensor, inputs[name]), name


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"position_ids": None}, InvalidInputError, "position_ids is missing"),
        ({"timestep": torch.rand(5)}, InvalidInputError, "has 5 noise levels, and the graph .* 4"),
        ({"attention_kwargs": {"scale": 0.5}}, UnsupportedError, "no input for attention_kwargs"),
    ],
)
def test_calls_that_no_graph_is_of(change, kind, words):
    with pytest.raises(kind, match=words) as error:
        MODEL.graph_inputs({**call_of("text"), **change})
    assert "\n" not in str(error.value)


def test_a_sequence_of_another_order_is_no_input_of_a_graph():
    call = call_of("text")
    with pytest.raises(UnsupportedError, match="one generated clip as the last"):
        MODEL.graph_inputs(moved(call, torch.arange(len(call["position_ids"])).roll(30)))


def test_pipeline_says_what_to_do_instead(transformer):
    with pytest.raises(UnsupportedError, match=r"enable\(pipe\.transformer\)") as error:
        Pipeline(pipe=SimpleNamespace(transformer=transformer), backend="torch", device="cpu")
    assert "\n" not in str(error.value)
