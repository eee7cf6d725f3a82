"""Modules of no registry, exported with grid and text place given by hand."""

from __future__ import annotations

from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from helpers.built_engines import built_for_rtx
from helpers.plain_dit import GRID, TEXT_TOKENS, WIDTH, PlainDiT, example
from rainfusion_trt.errors import ExportError, InvalidInputError, UnsupportedError
from rainfusion_trt.export import ExportReport, export_module
from rainfusion_trt.export.request import parse_grid
from rainfusion_trt.operator.ops import rainfusion_attention
from rainfusion_trt.routing import RainFusionSettings

TOLERANCE = 1e-4  # two float32 programs that order sums differently
DYNAMIC = {
    "latents": {0: "batch", 2: "frames", 3: "height", 4: "width"},
    "text": {0: "batch", 1: "text_tokens"},
}


def dit(joint: str = "none") -> PlainDiT:
    torch.manual_seed(3)
    return PlainDiT(joint).eval()


def grid_of(call) -> Tensor:
    return call["latents"][0, 0, :, ::2, ::2]


def relative_error(path: Path, module: nn.Module, inputs: dict[str, Tensor], **fixed) -> float:
    with torch.no_grad():
        expected = module(**inputs, **fixed)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    (actual,) = session.run(["sample"], {**feed, "sparsity": torch.zeros(1).numpy()})
    assert actual.shape == tuple(expected.shape)
    return float((torch.from_numpy(actual) - expected).abs().max() / expected.abs().max())


def nodes(report: ExportReport) -> list[onnx.NodeProto]:
    graph = onnx.load(report.path).graph
    return [node for node in graph.node if node.op_type == "RainFusionAttention"]


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


@pytest.mark.parametrize("joint", ["none", "first", "last"])
def test_self_attention_becomes_the_operator_and_the_rest_stays(joint, tmp_path):
    module, inputs = dit(joint), example()
    report = export_module(
        module,
        inputs,
        grid=GRID,
        text=joint,
        text_tokens=0 if joint == "none" else TEXT_TOKENS,
        output=tmp_path / "m.onnx",
        settings=RainFusionSettings("rainfusion2", 0.8, 0),
        run_compare=True,
    )
    assert report.error <= TOLERANCE and relative_error(report.path, module, inputs) <= TOLERANCE
    found = nodes(report)
    assert [n.name for n in found] == [f"self_attention.{i}/RainFusionAttention" for i in range(2)]
    assert report.facts.attentions == 2 and report.facts.operators["Softmax"] == 2  # cross
    values = attributes(found[0])
    assert (values["text"], values["method"]) == (joint.encode(), b"rainfusion2")
    graph = onnx.shape_inference.infer_shapes(onnx.load(report.path)).graph
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in graph.value_info}
    shapes |= {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    assert shapes[found[0].input[3]] == list(GRID)
    properties = {p.key: p.value for p in onnx.load(report.path).metadata_props}
    assert properties["rainfusion.model"] == "PlainDiT"
    assert properties["rainfusion.attention_nodes"] == "2"


def test_a_callable_grid_serves_sizes_that_vary(tmp_path):
    module = dit("last")
    report = export_module(
        module,
        example(),
        grid=grid_of,
        text="last",
        text_tokens=lambda call: call["text"].shape[1],
        output=tmp_path / "m.onnx",
        dynamic=DYNAMIC,
        attentions=2,
        name="mine",
    )
    for size in ((3, 8, 12, 2), (5, 4, 16, 1)):
        assert relative_error(report.path, module, example(*size)) <= TOLERANCE
    inputs = example(4, 6, 8, 1)
    inputs["text"] = inputs["text"][:, :3].contiguous()
    assert relative_error(report.path, module, inputs) <= TOLERANCE


def test_the_grid_may_be_the_name_of_an_input(tmp_path):
    class Told(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = dit()

        def forward(self, latents: Tensor, text: Tensor, grid: Tensor) -> Tensor:
            return self.inner(latents, text) + 0 * grid.sum()

    inputs = {**example(), "grid": torch.zeros(GRID)}
    report = export_module(
        Told().eval(), inputs, grid=parse_grid("grid"), output=tmp_path / "m.onnx"
    )
    assert report.facts.attentions == 2
    with pytest.raises(InvalidInputError, match="grid='gird' is none of the call's arguments"):
        export_module(Told().eval(), inputs, grid="gird", output=tmp_path / "m.onnx")


def test_kv_len_stands_for_the_padding_mask(tmp_path):
    module = dit("last")
    tokens = GRID[0] * GRID[1] * GRID[2]
    inputs = {**example(), "valid": torch.tensor([tokens + 3, tokens + TEXT_TOKENS])}
    place = {"grid": GRID, "text": "last", "text_tokens": TEXT_TOKENS}
    for name, kv_len in (("name", "valid"), ("function", lambda call: call["valid"])):
        report = export_module(
            module, inputs, **place, kv_len=kv_len, output=tmp_path / f"{name}.onnx"
        )
        assert relative_error(report.path, module, inputs) <= TOLERANCE
        assert all(len(node.input) == 6 for node in nodes(report))
    other = {**inputs, "valid": torch.tensor([tokens + 1, tokens + 5])}
    assert relative_error(report.path, module, other) <= TOLERANCE
    with pytest.raises(UnsupportedError, match=r"has a mask of shape \(2, 1, 1, 79\).*kv_len"):
        export_module(module, inputs, **place, output=tmp_path / "none.onnx")
    with pytest.raises(InvalidInputError, match="kv_len has 1 lengths for a batch of 2"):
        export_module(
            module,
            inputs,
            **place,
            kv_len=lambda call: call["valid"][:1],
            output=tmp_path / "one.onnx",
        )


def test_values_that_are_no_tensors_are_fixed_in_the_graph(tmp_path):
    module = dit()
    report = export_module(
        module, {**example(), "gain": 0.25, "valid": None}, grid=GRID, output=tmp_path / "m.onnx"
    )
    names = [value.name for value in onnx.load(report.path).graph.input]
    assert names == ["latents", "text", "sparsity"]
    assert relative_error(report.path, module, example(), gain=0.25) <= TOLERANCE
    assert relative_error(report.path, module, example(), gain=0.5) > 10 * TOLERANCE


def test_the_node_is_what_the_operator_computes(tmp_path):
    """Node by node, with the grid that was given: the sparse result depends on it."""

    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(()))

        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor]:
            return (nn.functional.scaled_dot_product_attention(q * self.weight, k, v, scale=0.5),)

    q, k, v = torch.randn(3, 1, 2, 4 * 8 * 8, 64).unbind(0)
    report = export_module(
        Bare().eval(), {"q": q, "k": k, "v": v}, grid=(4, 8, 8), output=tmp_path / "m.onnx"
    )
    (node,) = nodes(report)
    assert attributes(node)["scale"] == 0.5
    session = onnxruntime.InferenceSession(report.path, providers=["CPUExecutionProvider"])
    feed = {"q": q.numpy(), "k": k.numpy(), "v": v.numpy(), "sparsity": torch.zeros(1).numpy()}
    expected = rainfusion_attention(q, k, v, (4, 8, 8), sparsity=0.0, scale=0.5)
    torch.testing.assert_close(torch.from_numpy(session.run(None, feed)[0]), expected)


@pytest.mark.parametrize("options", [{"grid": (3, 4, 5)}, {"grid": GRID, "text": "last"}], ids=str)
def test_a_grid_that_matches_nothing_names_the_lengths_seen(tmp_path, options):
    if "text" in options:
        options = {**options, "text_tokens": TEXT_TOKENS}
    message = r"the \d+ tokens .* 72 x 72 \(2 times\), 72 x 7 .*fits them: grid=\(3, 4, 6\) \(lat"
    with pytest.raises(ExportError, match=message):
        export_module(dit(), example(), **options, output=tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_grid_that_matches_nothing_names_what_would_where_shapes_vary(tmp_path):
    with pytest.raises(ExportError, match=r"what fits them: grid=\(3, 4, 6\) \(latents"):
        export_module(
            dit(),
            example(),
            grid=lambda call: call["latents"][0, 0, :, 1::2, 1::3],
            dynamic=DYNAMIC,
            output=tmp_path / "m.onnx",
        )


def test_attention_that_goes_another_way_is_an_error(tmp_path):
    class Hidden(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, x, x, need_weights=False)[0]

    with pytest.raises(ExportError, match="no other call reached F.scaled_dot_product"):
        export_module(
            Hidden().eval(),
            {"x": torch.randn(1, 8, WIDTH)},
            grid=(2, 2, 2),
            output=tmp_path / "m.onnx",
        )


def test_another_number_of_attentions_than_expected_is_an_error(tmp_path):
    with pytest.raises(ExportError, match="2 attentions of PlainDiT .* has 3"):
        export_module(dit(), example(), grid=GRID, attentions=3, output=tmp_path / "m.onnx")


class Causal(nn.Module):
    def __init__(self, shape: tuple[int, ...], **options) -> None:
        super().__init__()
        self.shape, self.options = shape, options
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.linear(x).reshape(self.shape)
        return nn.functional.scaled_dot_product_attention(y, y, y, **self.options)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Causal((1, 2, 8, 8), is_causal=True), "is_causal=True"),
        (Causal((2, 8, 8)), r"q of shape \(2, 8, 8\).*\[B, N, S, D\]"),
    ],
)
def test_attention_that_the_operator_has_not_is_refused(tmp_path, module, message):
    with pytest.raises(UnsupportedError, match=message):
        export_module(
            module.eval(), {"x": torch.randn(16, 8)}, grid=(2, 2, 2), output=tmp_path / "m.onnx"
        )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grid": (3, 24)}, r"grid=\(3, 24\)"),
        ({"grid": (3, 4, 0)}, r"grid=\(3, 4, 0\)"),
        ({"grid": (3, 4, 6.0)}, r"grid=\(3, 4, 6.0\)"),
        ({"grid": lambda call: call["latents"]}, r"grid=\(2, 4, 3, 8, 12\)"),
        ({"text": "middle"}, "text='middle' is not one of none, first, last"),
        ({"text": "last"}, "text_tokens=0 must be the number of text tokens"),
        ({"text_tokens": 7}, "text_tokens=7 must be 0 where text='none'"),
        ({"kv_len": "lengths"}, "kv_len='lengths' is none"),
        ({"kv_len": "latents"}, "kv_len is torch.float32 of shape"),
        ({"attentions": 0}, "attentions=0"),
        ({"dynamic": {"clip": {0: "batch"}}}, "dynamic names 'clip'"),
        ({"dynamic": {"text": {3: "batch"}}}, "axis 3 of 'text'"),
        ({"output": "m.engine"}, r"must end in \.onnx"),
        ({"inputs": {"latents": torch.ones(1)}}, "missing a required argument: 'text'"),
        ({"inputs": {**example(), "extra": 1}}, "unexpected keyword argument 'extra'"),
        ({"inputs": {**example(), "valid": [1]}}, "'valid' is a list; wrap"),
        ({"inputs": {"latents": 1, "text": 2}}, "hold no tensor"),
        ({"module": nn.Identity(), "inputs": {"input": torch.ones(1)}}, "no floating-point param"),
        ({"module": PlainDiT()}, "training mode"),
        ({"module": PlainDiT().half().eval(), "run_compare": True}, "float32"),
    ],
    # No address of a function in a name, which workers of pytest-xdist have to agree on.
    ids=lambda value: str(value) if isinstance(value, str) else ", ".join(value),
)
def test_bad_arguments_are_named_before_work_starts(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.export, "export", lambda *_, **__: pytest.fail("work started"))
    arguments = {"module": dit(), "inputs": example(), "grid": GRID, "output": "m.onnx", **options}
    module, inputs = arguments.pop("module"), arguments.pop("inputs")
    with pytest.raises(InvalidInputError, match=message):
        export_module(module, inputs, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sparsity", "sample", "bits"])  # in graphs of 16 bits too
def test_names_of_the_graph_itself_are_taken(tmp_path, name):
    module = nn.Linear(8, 8).eval()
    module.forward = lambda **call: call[name]
    with pytest.raises(InvalidInputError, match=f"'{name}' has the name of"):
        export_module(module, {name: torch.ones(8)}, grid=(1, 1, 1), output=tmp_path / "m.onnx")


def test_names_of_the_exporters_values_are_free(tmp_path):
    """Its constants and values have names too, which a weight or an input may have as well."""

    class Own(PlainDiT):
        def __init__(self) -> None:
            super().__init__("none")
            self.axis_1 = nn.Parameter(torch.tensor([0.5]))

        def forward(self, latents, text, val_0):
            first, second = torch.stack((latents, 2 * latents), 1).unbind(1)
            return super().forward(first * self.axis_1 + second * val_0, text)

    torch.manual_seed(3)
    module, inputs = Own().eval(), {**example(), "val_0": torch.full((1,), 0.25)}
    report = export_module(module, inputs, grid=GRID, output=tmp_path / "own.onnx")
    graph = onnx.load(report.path).graph
    assert [value.name for value in graph.input] == ["latents", "text", "val_0", "sparsity"]
    assert {"axis_1", "axis_1/value"} <= {tensor.name for tensor in graph.initializer}
    assert relative_error(report.path, module, inputs) < TOLERANCE


def test_more_than_one_output_is_an_error(tmp_path):
    module = dit()
    forward = module.forward
    module.forward = lambda latents, text: (forward(latents, text), text)
    with pytest.raises(InvalidInputError, match="gives tuple, not one tensor"):
        export_module(module, example(), grid=GRID, output=tmp_path / "m.onnx")


@pytest.mark.tensorrt
def test_tensorrt_builds_it_with_every_attention_a_plugin_layer(tmp_path, plugin_library):
    inputs = {name: tensor.half() for name, tensor in example().items()}
    report = export_module(
        dit("first").half(),
        inputs,
        grid=GRID,
        text="first",
        text_tokens=TEXT_TOKENS,
        output=tmp_path / "m.onnx",
    )
    built = built_for_rtx(report.path, plugin_library, tmp_path / "engine", precision="float16")
    assert built.plugin_layers == 2 and built.model == "PlainDiT"
