"""The engine's node for ComfyUI on stand-ins that keep its contract, with a real exported graph."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

from rainfusion_trt.errors import DenseAttentionError, InvalidInputError, UnsupportedError
from rainfusion_trt.export import export_model
from rainfusion_trt.integrations.comfyui_engine import check_network
from rainfusion_trt.models import VideoSize, get_model
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.runtime.ort import OnnxRuntimeBackend

pytestmark = pytest.mark.usefixtures("one_thread")
MODEL = get_model("wan2.1-1.3b")
CONFIG = MODEL.config("tiny", layers=1)
SIZE = VideoSize(9, 64, 96)


class WanModel(nn.Module):
    """With the attributes of ComfyUI's by which a network is told."""

    ref_conv = img_emb = None

    def __init__(self, **changes):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
        known = {"in_dim": 16, "out_dim": 16, "dim": width, "num_heads": 2, "num_layers": 1}
        known |= {"ffn_dim": CONFIG["ffn_dim"], "text_dim": CONFIG["text_dim"]}
        for name, value in {**known, "dtype": torch.float32, **changes}.items():
            setattr(self, name, value)


class Patcher:
    """As ``ModelPatcher``: patches of objects are put in before sampling, callbacks are told."""

    load_device = "cpu"

    def __init__(self, model):
        self.model = model
        self.patches, self.object_patches, self.hook_patches = {}, {}, {}
        self.weight_wrapper_patches, self.callbacks = {}, {}

    def get_model_object(self, name):
        return self.object_patches.get(name, self.model)

    def clone(self):
        other = copy.copy(self)
        for name in ("patches", "object_patches", "hook_patches", "callbacks"):
            setattr(other, name, dict(getattr(self, name)))
        return other

    def add_object_patch(self, name, value):
        self.object_patches[name] = value

    def add_callback_with_key(self, moment, key, callback):
        self.callbacks[moment, key] = callback

    @torch.no_grad()
    def __call__(self, x, timestep, context, options=(), **others):
        for (moment, _), callback in self.callbacks.items():
            assert moment == "on_pre_run"
            callback(self)
        model = self.get_model_object("diffusion_model")
        call = {"control": None, "transformer_options": dict(options), **others}
        return model(x, timestep, context=context, **call)


@pytest.fixture(scope="module")
def transformer():
    return MODEL.create(CONFIG, dtype=torch.float32)


@pytest.fixture(scope="module")
def file(transformer, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "wan.onnx"
    return export_model(MODEL, transformer, SIZE, output=path, run_compare=False).path


@pytest.fixture(scope="module")
def node():
    """As ComfyUI loads it, by its path."""
    path = Path(__file__).parents[2] / "integrations/comfyui/__init__.py"
    spec = importlib.util.spec_from_file_location("comfyui_pack", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert set(module.NODE_CLASS_MAPPINGS) == set(module.NODE_DISPLAY_NAME_MAPPINGS)
    return module.NODE_CLASS_MAPPINGS["RainFusionEngine"]()


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X, CONTEXT = draw(2, 16, 3, 8, 12), draw(2, 512, CONFIG["text_dim"], seed=1)
STEP = torch.tensor([700.0, 700.0])


def apply(node, file, model=None, sparsity=0.0, dense_steps=0, allow_dense=False):
    patcher = Patcher(WanModel() if model is None else model)
    return node.apply(patcher, str(file), sparsity, dense_steps, allow_dense)[0]


def test_the_graph_gives_what_the_transformer_does(node, file, transformer):
    """Text and its negative come as one batch of two, and the graph takes one clip."""
    patched = apply(node, file)
    with torch.no_grad():
        wanted = transformer(X, STEP, CONTEXT, return_dict=False)[0]
    found = patched(X, STEP, CONTEXT)
    # Two float32 programs of one layer.
    assert (found - wanted).abs().max() <= 1e-4 * wanted.abs().max()
    assert torch.equal(patched(X[:1], STEP[:1], CONTEXT[:1]), found[:1])


def test_a_graph_of_8_bits_runs_in_them(node, transformer, tmp_path, monkeypatch):
    """Where its attention is not the dense body, which has 16."""
    settings = AttentionSettings(precision="8bit")
    path = export_model(
        MODEL, transformer, SIZE, output=tmp_path / "wan.onnx", settings=settings
    ).path
    for sparse, precision in ((False, "16bit"), (True, "8bit")):
        monkeypatch.setattr(OnnxRuntimeBackend, "sparse", sparse)
        engine = apply(node, path).get_model_object("diffusion_model")
        assert engine._denoiser.component.precision == precision


def test_it_has_the_attributes_and_none_of_the_weights_of_the_model(node, file):
    model = WanModel()
    engine = apply(node, file, model).get_model_object("diffusion_model")
    assert (
        engine.num_layers == 1 and engine.dtype is torch.float32 and engine.weight is model.weight
    )
    assert all(parameter.numel() == 0 for parameter in engine.parameters())
    with pytest.raises(AttributeError, match="nothing"):
        _ = engine.nothing


@pytest.mark.parametrize(
    ("others", "options", "words"),
    [
        ({"control": {"output": []}}, {}, "a ControlNet is applied"),
        ({"reference_latent": X}, {}, "the conditioning has reference_latent"),
        ({"time_dim_concat": X}, {}, "the conditioning has time_dim_concat"),
        ({}, {"patches": {"attn1_patch": [1]}}, "other nodes bring attention patches"),
        ({}, {"patches_replace": {"dit": {0: 1}}}, "replaced blocks"),
        ({}, {"optimized_attention_override": print}, "an attention override"),
        ({}, {"wrappers": {"diffusion_model": {"k": [1]}}}, "wrappers of the diffusion model"),
    ],
)
def test_what_an_engine_cannot_take_is_refused(node, file, others, options, words):
    with pytest.raises(UnsupportedError, match=words) as error:
        apply(node, file)(X, STEP, CONTEXT, options, **others)
    assert "\n" not in str(error.value)


def test_what_comfyui_always_passes_is_taken(node, file):
    options = {"wrappers": {"diffusion_model": {}}, "patches": {}, "cond_or_uncond": [0, 1]}
    apply(node, file)(X, STEP, CONTEXT, options, denoise_mask=None, clip_fea=None)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        (
            "patches",
            {"diffusion_model.blocks.0.weight": []},
            "patches of 1 weights, such as a LoRA",
        ),
        ("hook_patches", {"hook": {}}, "hooks of weights"),
        (
            "object_patches",
            {"diffusion_model.blocks.0": 1},
            "has replaced diffusion_model.b",
        ),
    ],
)
def test_patches_of_weights_are_refused_before_and_behind(node, file, behind, name, value, words):
    patcher = apply(node, file) if behind else Patcher(WanModel())
    getattr(patcher, name).update(value)
    with pytest.raises(UnsupportedError, match=words):
        if behind:
            patcher(X, STEP, CONTEXT)
        else:
            node.apply(patcher, str(file), 0.0, 0, False)


def test_sizes_that_the_graph_does_not_take(node, file):
    with pytest.raises(InvalidInputError, match="no whole tokens: .* multiples of 16"):
        apply(node, file)(X[..., :-1], STEP, CONTEXT)
    with pytest.raises(InvalidInputError, match="input hidden_states is"):
        apply(node, file)(X[:, :, :2], STEP, CONTEXT)


def test_another_network_is_refused(node, file):
    with pytest.raises(InvalidInputError, match="dim 64 instead of 256, num_layers 2 instead of 1"):
        apply(node, file, WanModel(dim=64, num_layers=2))
    with pytest.raises(InvalidInputError, match="image embeddings"):
        apply(node, file, WanModel(img_emb=1))
    with pytest.raises(UnsupportedError, match="the model in ComfyUI a VaceWanModel"):
        apply(node, file, type("VaceWanModel", (WanModel,), {})())
    with pytest.raises(UnsupportedError, match="RainFusion attention"):
        check_network(WanModel(), get_model("hunyuanvideo"), {}, "the engine x")
    with pytest.raises(InvalidInputError, match="already"):
        node.apply(apply(node, file), str(file), 0.0, 0, False)
    with pytest.raises(InvalidInputError, match="/no.onnx"):
        apply(node, "/no.onnx")


def test_a_graph_without_sparse_attention_says_so(node, file, caplog):
    with pytest.raises(DenseAttentionError, match="onnxruntime runs the dense body"):
        apply(node, file, sparsity=0.5)
    apply(node, file, sparsity=0.5, allow_dense=True)
    assert "onnxruntime runs the dense body" in caplog.text


def test_sparsity_follows_the_sampler(node, file):
    patched = apply(node, file, sparsity=0.5, dense_steps=1, allow_dense=True)
    component = patched.get_model_object("diffusion_model")._denoiser.component
    levels, seen = torch.tensor([1.0, 0.6, 0.3, 0.0]), []
    for step in range(3):
        patched(X, STEP, CONTEXT, {"sample_sigmas": levels, "sigmas": levels[step : step + 1]})
        seen.append(float(component.sparsity))
    assert seen == [0.0, 0.5, 0.5]


def test_timesteps_of_frames_become_those_of_tokens(node):
    """ComfyUI gives Wan 2.2 TI2V one of each latent frame where an image is held."""
    from rainfusion_trt.integrations.comfyui_engine import EngineModel

    engine = object.__new__(EngineModel)
    nn.Module.__init__(engine)
    engine._model, engine._hidden = get_model("wan2.2-ti2v-5b"), (None,)
    x = torch.zeros(1, 48, 3, 4, 6)
    steps = engine._timesteps(torch.tensor([[0.0, 500.0, 500.0]]), x)
    assert steps.tolist() == [[0.0] * 6 + [500.0] * 12]
    assert engine._timesteps(torch.tensor([500.0]), x).tolist() == [[500.0] * 18]
