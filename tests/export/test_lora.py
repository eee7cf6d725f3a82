"""LoRA files fused at export, against diffusers with the same files loaded and not fused."""

from __future__ import annotations

import copy
import hashlib
import json
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.export import LoraFile, export_model, fake_transformer, fuse_loras
from rainfusion_trt.export.cli import app
from rainfusion_trt.models import VideoModel, get_model

pytest.importorskip("peft", reason="diffusers reads LoRA files with peft")

# Two float32 programs that order sums differently, as in test_exported_models.py.
TOLERANCE = 1e-4
SUFFIXES = ("to_q", "to_v", "to_out.0", "ff.net.2", "proj_out")


def transformer_of(name: str) -> tuple[VideoModel, nn.Module]:
    model = get_model(name)
    return model, model.create(model.config("tiny", layers=1), dtype=torch.float32, seed=3)


def lora_tensors(
    transformer: nn.Module, *, rank: int = 4, seed: int = 0, prefix: str = "transformer."
) -> dict[str, Tensor]:
    """A LoRA strong enough to change the output visibly; its last layer has another rank."""
    generator = torch.Generator().manual_seed(seed)
    names = [n for n, m in transformer.named_modules() if isinstance(m, nn.Linear)]
    tensors = {}
    for name in (n for n in names if n.endswith(SUFFIXES)):
        out_size, in_size = transformer.get_submodule(name).weight.shape
        r = rank + (name == names[-1])
        down = torch.randn(r, in_size, generator=generator) / in_size**0.5
        up = torch.randn(out_size, r, generator=generator) / r**0.5
        tensors[f"{prefix}{name}.lora_A.weight"] = down
        tensors[f"{prefix}{name}.lora_B.weight"] = up
    return tensors


@pytest.fixture
def small():
    return transformer_of("cogvideox-2b")


@pytest.fixture
def write(tmp_path):
    def write(tensors: dict[str, Tensor], name: str = "style.safetensors", **metadata) -> Path:
        path = tmp_path / name
        save_file(tensors, path, metadata=metadata or None)
        return path

    return write


def outputs(path: Path, inputs: dict[str, Tensor]) -> Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    return torch.from_numpy(session.run(["sample"], {**feed, "sparsity": [0.0]})[0])


def difference(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize(
    "name",
    [
        "cogvideox-5b",
        "wan2.1-1.3b",
        pytest.param("hunyuanvideo", marks=pytest.mark.rehearsal),
        "allegro",
    ],
)
def test_exported_graph_equals_pytorch_with_the_loras_unfused(name, tmp_path, write):
    """Two files, with scales; Allegro's diffusers class has no LoRA methods of its own."""
    from diffusers.loaders import PeftAdapterMixin

    model, transformer = transformer_of(name)
    first = write(lora_tensors(transformer), "first.safetensors")
    second = write(lora_tensors(transformer, seed=1, rank=2), "second.safetensors")
    inputs = model.example_inputs(transformer, model.tiny_size, batch=1)
    plain = export_model(
        model, transformer, model.tiny_size, output=tmp_path / "plain.onnx", batch=1
    )
    fuse_loras(model, transformer, [f"{first}:0.5", str(second)])
    report = export_model(
        model, transformer, model.tiny_size, output=tmp_path / "lora.onnx", batch=1
    )

    _, unfused = transformer_of(name)
    if not isinstance(unfused, PeftAdapterMixin):
        unfused.__class__ = type("Unfused", (PeftAdapterMixin, type(unfused)), {})
    for file in (first, second):
        unfused.load_lora_adapter(str(file), adapter_name=file.stem)
    unfused.set_adapters(["first", "second"], [0.5, 1.0])
    with torch.no_grad():
        expected = unfused(**model.forward_kwargs(inputs), return_dict=False)[0]
    actual = outputs(report.path, inputs)
    assert difference(actual, expected) <= TOLERANCE
    assert difference(outputs(plain.path, inputs), expected) > 0.01
    assert report.facts.operators == plain.facts.operators
    assert report.weight_bytes == plain.weight_bytes


def test_metadata_names_every_lora(small, tmp_path, write):
    model, transformer = small
    file = write(lora_tensors(transformer))
    assert fuse_loras(model, transformer, []) == ()
    fuse_loras(model, transformer, [LoraFile(file, -0.25)])
    fused = fuse_loras(model, transformer, [file])
    report = export_model(model, transformer, model.tiny_size, output=tmp_path / "m.onnx")
    properties = {p.key: p.value for p in onnx.load(report.path).metadata_props}
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    one = {"file": "style.safetensors", "scale": -0.25, "sha256": sha256, "layers": 5}
    assert json.loads(properties["rainfusion.loras"]) == [one, {**one, "scale": 1.0}]
    assert report.loras == fused and [x.scale for x in fused] == [-0.25, 1.0]
    assert transformer.state_dict().keys() == transformer_of("cogvideox-2b")[1].state_dict().keys()


def test_a_transformer_without_lora_says_nothing_of_it(exported):
    properties = [p.key for p in onnx.load(exported("cogvideox-5b").path).metadata_props]
    assert "rainfusion.model" in properties and "rainfusion.loras" not in properties


def weights_with(small, *loras) -> dict[str, Tensor]:
    model, transformer = small
    fuse_loras(model, transformer, loras)
    return transformer.state_dict()


def test_spellings_of_diffusers_and_peft_are_one(small, write, tmp_path):
    """With and without prefix, up and down, and a folder of peft with its alpha."""
    tensors = lora_tensors(small[1], prefix="")
    files = [write(tensors, "bare.safetensors")]
    files.append(
        write({f"transformer.{n}": t for n, t in tensors.items()}, "diffusers.safetensors")
    )
    old = {
        n.replace("lora_A", "lora.down").replace("lora_B", "lora.up"): t for n, t in tensors.items()
    }
    files.append(write({f"transformer.{n}": t for n, t in old.items()}, "old.safetensors"))
    folder = tmp_path / "adapter"
    folder.mkdir()
    write(
        {f"base_model.model.{n}": t for n, t in tensors.items()},
        "adapter/adapter_model.safetensors",
    )
    targets = sorted({n.split(".lora_")[0] for n in tensors})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 2, "target_modules": targets}
    config["rank_pattern"] = {"proj_out": 5}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    files.append(f"{folder}:1")

    made = [weights_with((small[0], copy.deepcopy(small[1])), file) for file in files]
    base = small[1].state_dict()
    query = next(n for n in base if n.endswith("to_q.weight"))
    change = (
        tensors[query.replace("weight", "lora_B.weight")]
        @ tensors[query.replace("weight", "lora_A.weight")]
    )
    torch.testing.assert_close(made[0][query], base[query] + change)
    for other in made[1:3]:
        torch.testing.assert_close(other, made[0])
    torch.testing.assert_close(made[3][query], base[query] + change * 2 / 4)


def test_alpha_that_diffusers_wrote_into_the_file_counts(small, tmp_path):
    from diffusers import CogVideoXPipeline
    from diffusers.training_utils import _collate_lora_metadata
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    model, transformer = small
    trained = copy.deepcopy(transformer)
    trained.add_adapter(
        LoraConfig(r=4, lora_alpha=8, target_modules=["to_q"], init_lora_weights=False)
    )
    CogVideoXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=get_peft_model_state_dict(trained),
        **_collate_lora_metadata({"transformer": trained}),
    )
    query = next(n for n in transformer.state_dict() if n.endswith("to_q.weight"))
    base = transformer.state_dict()[query].clone()
    tensors = get_peft_model_state_dict(trained)
    down, up = (tensors[query.replace("weight", f"lora_{x}.weight")] for x in "AB")
    made = weights_with(small, tmp_path)[query]
    torch.testing.assert_close(made, base + 2.0 * up @ down)


@pytest.mark.parametrize("name", ["cogvideox-2b", "wan2.1-1.3b"])
def test_dtypes_stay_those_of_the_transformer(name, write):
    """Also the float32 layers that Wan keeps in a bfloat16 model."""
    model = get_model(name)
    transformer = model.create(model.config("tiny", layers=1), dtype=torch.bfloat16)
    before = {n: t.clone() for n, t in transformer.state_dict().items()}
    file = write({n: t.half() for n, t in lora_tensors(transformer).items()})
    fuse_loras(model, transformer, [file])
    after = transformer.state_dict()
    assert {n: t.dtype for n, t in after.items()} == {n: t.dtype for n, t in before.items()}
    changed = {n for n, t in after.items() if not torch.equal(t, before[n])}
    layers = {n.split(".lora_")[0] for n in lora_tensors(transformer, prefix="")}
    assert changed == {f"{layer}.weight" for layer in layers}


def test_names_of_wans_original_code_are_read(write):
    """A file of its community, which trains blocks of the original network."""
    model, transformer = transformer_of("wan2.1-1.3b")
    base = {n: t.clone() for n, t in transformer.state_dict().items()}
    tensors = lora_tensors(transformer, prefix="")
    changes = {"blocks.0.attn1.to_q": "self_attn.q", "blocks.0.attn2.to_v": "cross_attn.v"}
    file = write(
        {
            f"diffusion_model.blocks.0.{original}.lora_{side}.weight": tensors[
                f"{name}.lora_{side}.weight"
            ]
            for name, original in changes.items()
            for side in "AB"
        }
    )
    (fused,) = fuse_loras(model, transformer, [file])
    assert fused.layers == 2
    for name in changes:
        change = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
        actual = transformer.state_dict()[f"{name}.weight"]
        torch.testing.assert_close(actual, base[f"{name}.weight"] + change)


def wrong_keys(tensors):
    return {n.replace("to_q", "to_x"): t for n, t in tensors.items()}


def other_model(tensors):
    return {n.replace("transformer.", "transformer.layers."): t for n, t in tensors.items()}


def wrong_width(tensors):
    return {n: t[:, :-1].contiguous() if "lora_A" in n else t for n, t in tensors.items()}


def wrong_rank(tensors):
    return {n: t[:, :-1].contiguous() if "lora_B" in n else t for n, t in tensors.items()}


def one_side(tensors):
    return {n: t for n, t in tensors.items() if "to_q.lora_B" not in n}


def infinite(tensors):
    return {n: t / 0.0 for n, t in tensors.items()}


def dora(tensors):
    return {**tensors, "transformer.proj_out.dora_scale": torch.ones(3)}


def alpha_alone(tensors):
    return {**tensors, "transformer.norm_out.linear.alpha": torch.ones(())}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_keys, r"2 of 10 keys that fit no layer .*to_x"),
        (other_model, r"matches no layer of CogVideoX.*'layers\."),
        (wrong_width, r"\[5, 127\] and \[64, 5\].* not fit a weight of \[64, 128\]"),
        (wrong_rank, r"rank 5 and lora_B rank 4"),
        (one_side, r"no transformer_blocks.0.attn1.to_q.lora_B.weight"),
        (infinite, "not finite"),
        (alpha_alone, r"norm_out\.linear\.alpha belongs to no change"),
        (lambda tensors: {}, "it is empty"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(small, write, change, message):
    model, transformer = small
    before = {n: t.clone() for n, t in transformer.state_dict().items()}
    file = write(change(lora_tensors(transformer)))
    with pytest.raises(InvalidInputError, match=message):
        fuse_loras(model, transformer, [file])
    torch.testing.assert_close(transformer.state_dict(), before, rtol=0, atol=0)
    assert fuse_loras(model, transformer, []) == ()


def test_dora_is_refused(small, write):
    with pytest.raises(UnsupportedError, match="DoRA"):
        fuse_loras(*small, [write(dora(lora_tensors(small[1])))])


def test_missing_and_unreadable_files_are_named(small, tmp_path, write):
    (tmp_path / "bad.safetensors").write_bytes(b"not a LoRA")
    (tmp_path / "pickled.bin").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    file = write(lora_tensors(small[1]))
    write(lora_tensors(small[1]), "other.safetensors")
    for lora, message in (
        (tmp_path / "none.safetensors", "no LoRA at .*none.safetensors"),
        (f"{file}:much", "'much' is no number"),
        (f"{file}:nan", "scale nan"),
        (f"{file}:0", "scale 0.0"),
        (tmp_path / "pickled.bin", "must be a .safetensors file"),
        (tmp_path / "empty", "no .safetensors file"),
        (tmp_path, "several LoRA files .bad.safetensors, other.safetensors"),
        (tmp_path / "bad.safetensors", "could not be read"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            fuse_loras(*small, [lora])


def test_a_graph_without_weights_takes_no_lora(small, write):
    model, transformer = small
    file = write(lora_tensors(transformer))
    fake = fake_transformer(model, model.config("tiny", layers=1), dtype=torch.float32)
    with pytest.raises(InvalidInputError, match="needs weights"):
        fuse_loras(model, fake, [file])


def test_adapters_that_are_loaded_but_not_fused_are_refused(small, tmp_path, write):
    model, transformer = small
    transformer.load_lora_adapter(str(write(lora_tensors(transformer))), adapter_name="style")
    with pytest.raises(InvalidInputError, match="loaded adapters .style.*fuse_loras"):
        export_model(model, transformer, model.tiny_size, output=tmp_path / "m.onnx")
    with pytest.raises(InvalidInputError, match="loaded adapters"):
        fuse_loras(model, transformer, [tmp_path / "style.safetensors"])


def call(*arguments: object):
    base = ["--model", "cogvideox-2b", "--config", "tiny", "--layers", "1", "--dtype", "fp32"]
    return CliRunner().invoke(app, [*base, *map(str, arguments)])


def test_command_line_fuses_and_says_so(small, tmp_path, write):
    file = write(lora_tensors(small[1]))
    result = call(
        "--random-weights", "--lora", f"{file}:0.5", "--lora", file, "--output", tmp_path / "m.onnx"
    )
    assert result.exit_code == 0, result.output
    sha256 = hashlib.sha256(file.read_bytes()).hexdigest()
    assert f"fused LoRA style.safetensors, scale 0.5, 5 layers, sha256 {sha256}" in result.output
    assert "fused LoRA style.safetensors, scale 1, " in result.output


def test_command_line_refuses_before_it_makes_weights(small, tmp_path, write, monkeypatch):
    file = write(lora_tensors(small[1]))
    monkeypatch.setattr(VideoModel, "create", lambda *_, **__: pytest.fail("made weights"))
    for arguments, message in (
        (("--random-weights", "--lora", tmp_path / "none"), "no LoRA at"),
        (("--no-weights", "--lora", file), "--lora adds to weights"),
    ):
        result = call(*arguments)
        assert result.exit_code == 2 and message in result.output
