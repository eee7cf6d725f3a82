"""The engine benchmarks on tiny networks, on the CPU: comparisons and result files."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

pytest.importorskip("onnxruntime")
pytest.importorskip("rainfusion_trt.export")

from typer.testing import CliRunner

from benchmarks.engine import engines, few_layers, measure, models_table
from benchmarks.engine import models_cli as bench_models
from benchmarks.engine.cases import Case
from benchmarks.engine.compiled import COMPILED_SPARSE
from benchmarks.engine.denoising import latent_pipeline
from benchmarks.engine.eager import Eager, attention_kernels, padding_cut
from benchmarks.engine.few_layers import COMPILED, EAGER, ENGINE, MASKED, OPERATOR, Options
from rainfusion_trt.engine.flavour import available_flavours
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.models import VideoSize, get_model

pytestmark = pytest.mark.rehearsal
SETTINGS = {"tiny": True, "device": "cpu", "dtype": torch.float32}
CPU = Options(rounds=2, compiler="eager", target=None)
NAMES = list(bench_models.LAYERS)


def tiny(name: str, **changes) -> Case:
    return Case.standard(name, layers=bench_models.LAYERS[name], **{**SETTINGS, **changes})


def run(case: Case, folder: Path, options: Options = CPU) -> list[dict]:
    return few_layers.measure(case, folder, options, lambda _rows: None)


def chosen(rows: list[dict], **wanted) -> list[dict]:
    return [row for row in rows if all(row.get(key) == value for key, value in wanted.items())]


class TestCases:
    @pytest.mark.parametrize(
        ("name", "blocks", "tokens", "valid", "batch"),
        [
            ("hunyuanvideo", 2, 119_056, 118_864, 1),
            ("opensoraplan-1.2", 2, 86_400, 86_400, 2),
            ("cogvideox-5b", 2, 17_776, 17_776, 2),
            ("wan2.1-14b", 2, 75_600, 75_600, 1),
            ("wan2.2-i2v-a14b", 2, 75_600, 75_600, 1),
        ],
    )
    def test_standard_settings_at_full_width(self, name, blocks, tokens, valid, batch):
        case = Case.standard(name, layers=bench_models.LAYERS[name], device="cpu")
        assert (case.blocks, case.batch, case.dtype) == (blocks, batch, torch.bfloat16)
        with torch.device("meta"):
            transformer = case.model.diffusers_class()(**case.config)
        inputs = case.inputs(transformer)
        assert case.tokens(transformer, inputs) == (tokens, valid)

    def test_no_gpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(InvalidInputError, match="sees no GPU.*--tiny"):
            Case.standard("wan2.1-14b")

    def test_lengths_that_differ_within_a_batch(self):
        case = dataclasses.replace(tiny("hunyuanvideo"), batch=2)
        with pytest.raises(InvalidInputError, match="batch 2 has .* valid tokens"):
            Eager(case)

    def test_same_weights_every_time(self):
        first, again = (tiny("cogvideox-5b").transformer() for _ in range(2))
        pairs = zip(first.parameters(), again.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)


class TestEager:
    def test_padding_cut_is_the_mask(self):
        eager = Eager(tiny("hunyuanvideo"))
        assert eager.valid < eager.tokens
        error = measure.relative_error(eager.without_padding(), eager())
        assert error < 1e-6  # float32; other sizes of the sums

    def test_padding_cut_cuts_only_the_padding(self):
        """With fewer keys than are valid the result is another."""
        eager = Eager(tiny("hunyuanvideo"))
        with padding_cut(eager.tokens, eager.valid - 8):
            wrong = eager()
        assert measure.relative_error(wrong, eager()) > 1e-3

    def test_kernels_of_self_attention_are_told_apart(self):
        eager = Eager(tiny("opensoraplan-1.2"))
        own, rest = attention_kernels(eager, eager)
        assert sum(own.values()) == sum(rest.values()) == 2
        eager = Eager(tiny("hunyuanvideo"))
        for forward in (eager, eager.without_padding):
            own, rest = attention_kernels(forward, eager)
            assert (sum(own.values()), sum(rest.values())) == (2, 1)  # the refiner has one block

    def test_masks_that_cudnn_fails_over_go_elsewhere(self, monkeypatch):
        """Self-attention and attention without mask stay where they were."""
        eager = Eager(tiny("opensoraplan-1.2"))
        wanted = eager()
        kernel = torch.nn.functional.scaled_dot_product_attention
        there, elsewhere = [], []

        @contextmanager
        def record(_backend):
            elsewhere.append(True)
            yield
            elsewhere.pop()

        def fail_over_masks(query, key, value, attn_mask=None, **kwargs):
            if attn_mask is not None and not elsewhere:
                raise RuntimeError("cuDNN Frontend error: No valid execution plans")
            there.append((key.shape[-2], bool(elsewhere)))
            return kernel(query, key, value, attn_mask, **kwargs)

        monkeypatch.setattr("benchmarks.engine.eager.sdpa_kernel", record)
        monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", fail_over_masks)
        eager.settle()
        there.clear()
        assert torch.equal(eager(), wanted)
        assert set(there) == {(72, False), (512, True)}

    def test_another_size_with_the_same_weights(self):
        eager = Eager(tiny("wan2.1-14b"))
        other = eager.at(VideoSize(5, 48, 80))
        assert other.transformer is eager.transformer
        assert (eager.tokens, other.tokens) == (72, 30)
        assert other().shape[-3:] == (2, 6, 10)


class TestFewLayers:
    @pytest.mark.parametrize("name", NAMES)
    def test_rows(self, name, tmp_path):
        rows = run(tiny(name), tmp_path / name)
        assert measure.wrong_rows(rows) == []
        assert not (tmp_path / name).exists()
        (dense,) = chosen(rows, what="one forward", run=ENGINE, sparsity=0.0, against=EAGER)
        assert 0.0 < dense["relative_error"] < 1e-4  # as the exporter's own comparison
        (sparse,) = chosen(rows, run=ENGINE, sparsity=0.5, against=OPERATOR)
        assert "dense attention only" in sparse["not_run"]
        timed = {(r["run"], r["sparsity"]) for r in chosen(rows, what="time of one forward")}
        expected = {(EAGER, 0.0), (COMPILED, 0.0), (ENGINE, 0.0), (OPERATOR, 0.0), (OPERATOR, 0.5)}
        expected.add((COMPILED_SPARSE, 0.8))
        masked = {(MASKED, 0.0)} if name.startswith("hunyuanvideo") else set()
        assert timed == expected | masked
        for row in chosen(rows, what="time of one forward"):
            assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
            assert row["ms_per_block"] == pytest.approx(row["ms"] / 2, abs=0.01)

    def test_a_wrong_engine_is_seen(self, tmp_path, monkeypatch):
        class Wrong(engines.Engine):
            def __call__(self, sparsity):
                return 1.1 * super().__call__(sparsity)

        monkeypatch.setattr(few_layers, "Engine", Wrong)
        rows = run(tiny("cogvideox-5b"), tmp_path / "x")
        wrong = measure.wrong_rows(rows)
        assert {row["against"] for row in wrong} == {EAGER, OPERATOR}
        assert all(row["relative_error"] == pytest.approx(0.1, rel=1e-3) for row in wrong)

    def test_a_compiler_that_fails_is_a_row(self, tmp_path, monkeypatch):
        def broken(_graph, _inputs):
            raise ValueError("no such luck\nand more")

        options = dataclasses.replace(CPU, compiler=broken)
        rows = run(tiny("cogvideox-5b"), tmp_path / "x", options)
        failed = chosen(rows, what="torch.compile")
        assert [row["run"] for row in failed] == [COMPILED, COMPILED_SPARSE]
        assert all("no such luck" in row["failed"] for row in failed)
        assert measure.wrong_rows(rows) == failed
        for run_ in (COMPILED, COMPILED_SPARSE):
            assert not chosen(rows, what="time of one forward", run=run_)
        assert chosen(rows, what="time of one forward", run=EAGER)

    def test_a_compiler_that_takes_too_long_is_a_row(self):
        def slow(graph, _inputs):
            time.sleep(30)
            return graph

        eager = Eager(tiny("cogvideox-5b"))
        options = dataclasses.replace(CPU, compiler=slow, seconds=5.0)
        started = time.monotonic()
        baselines = few_layers.compiled_baseline(eager, eager(), options)
        assert time.monotonic() - started < 25
        assert not baselines.forwards
        assert "not done after 5 s" in baselines.rows[0]["failed"]

    def test_a_mask_that_the_kernel_refuses_is_a_row(self, monkeypatch):
        eager = Eager(tiny("hunyuanvideo"))

        def refuse(*_args, **_kwargs):
            raise RuntimeError("No available kernel.  Aborting execution.")

        monkeypatch.setattr(Eager, "__call__", refuse)
        monkeypatch.setattr(Eager, "without_padding", lambda self: self.inputs["hidden_states"])
        baselines = few_layers.eager_baselines(eager, 0.0)
        assert set(baselines.forwards) == {EAGER}
        (row,) = chosen(baselines.rows, run=MASKED)
        assert "No available kernel" in row["failed"]

    def test_rounding_in_bfloat16(self):
        eager = Eager(tiny("cogvideox-5b", dtype=torch.bfloat16))
        baselines = few_layers.eager_baselines(eager, 0.0)
        rows = few_layers.rounding(eager, baselines, lambda _s: eager())
        # 2^-9 an operation, two layers.
        assert [1e-3 < row["error_to_float32"] < 2e-2 for row in rows] == [True, True]

    def test_no_float32_forward_that_would_take_minutes(self, monkeypatch):
        monkeypatch.setattr(few_layers, "_FLOAT32_FLOPS", 0.0)
        eager = Eager(tiny("cogvideox-5b", dtype=torch.bfloat16))
        baselines = few_layers.eager_baselines(eager, 0.0)
        assert few_layers.rounding(eager, baselines, lambda _s: eager()) == []


class TestMeasure:
    def test_relative_error(self):
        ones = torch.ones(4)
        assert measure.relative_error(1.5 * ones, ones) == 0.5
        assert math.isnan(measure.relative_error(ones * float("nan"), ones))

    @pytest.mark.parametrize("errors", [[0.1, math.nan], [math.nan, 0.1]])
    def test_the_worst_error_is_nan(self, errors):
        assert math.isnan(measure.worst(errors))
        assert measure.worst([0.1, 0.3, 0.2]) == 0.3

    def test_wrong_rows(self):
        rows = [{"relative_error": e} for e in (1e-3, 2e-2, math.nan)] + [{"ms": 1.0}]
        assert measure.wrong_rows([*rows, {"failed": "x"}]) == [*rows[1:3], {"failed": "x"}]

    def test_runs_take_turns(self):
        order: list[str] = []
        runs = {(name, 0.0): lambda name=name: order.append(name) for name in "ab"}
        rows = measure.time_in_turn(runs, rounds=2)
        assert order == ["a", "b", "a", "b"]
        assert "ms_per_block" not in rows[0]

    def test_time_limit(self):
        with pytest.raises(TimeoutError, match=r"after 0\.05 s"), measure.time_limit(0.05):
            time.sleep(5)
        with measure.time_limit(0.05):
            pass
        time.sleep(0.1)  # no alarm is left


class TestPrepared:
    def test_used_again_only_for_the_same_case(self, tmp_path, monkeypatch):
        case = tiny("cogvideox-5b")
        first = engines.prepare(case, tmp_path, target=None)
        exports = []
        monkeypatch.setattr(engines, "export_model", lambda *a, **k: exports.append(a))
        assert engines.prepare(case, tmp_path, target=None) == first
        assert exports == []
        engines.prepare(dataclasses.replace(case, batch=1), tmp_path, target=None)
        assert len(exports) == 1
        (tmp_path / "prepared.json").write_text("")  # as a run that was killed could leave it
        engines.prepare(case, tmp_path, target=None)
        assert len(exports) == 2

    def test_removes_its_own_files_only(self, tmp_path):
        folder = tmp_path / "case"
        folder.mkdir()
        for name in ("model.onnx", "model.onnx.data", "prepared.json", "notes"):
            (folder / name).write_text("")
        (folder / "model.engine").mkdir()
        prepared = engines.Prepared(folder / "model.onnx", folder / "model.engine", {})
        prepared.remove()
        assert [path.name for path in folder.iterdir()] == ["notes"]
        (folder / "notes").unlink()
        prepared = dataclasses.replace(prepared, engine=None)
        prepared.remove()
        assert not folder.exists()

    @pytest.mark.tensorrt
    @pytest.mark.skipif("tensorrt_rtx" not in available_flavours(), reason="no TensorRT for RTX")
    def test_two_sizes_in_one_engine(self, tmp_path, plugin_library):
        from rainfusion_trt.engine import load_metadata

        case = tiny("wan2.1-14b", dtype=torch.bfloat16, dynamic=True)
        recipe = engines.recipe_of_sizes(case, bench_models.TINY_SIZES)
        prepared = engines.prepare(case, tmp_path, recipe=recipe, target="sm80")
        built = load_metadata(prepared.engine)
        assert (built.profiles, built.plugin_layers) == (("large", "small"), 2)
        assert engines.prepare(case, tmp_path, recipe=recipe, target="sm80") == prepared

    def test_pipelines_that_no_benchmark_needs(self):
        with pytest.raises(UnsupportedError, match="no benchmark of WanPipeline"):
            latent_pipeline(get_model("wan2.1-14b"), None)


class TestCommand:
    def invoke(self, *arguments: str):
        return CliRunner().invoke(bench_models.app, list(arguments), catch_exceptions=True)

    def test_complete_and_two_sizes(self, tmp_path):
        out = tmp_path / "out"
        options = ["--workdir", str(tmp_path / "w"), "--tiny", "--output", str(out)]
        result = self.invoke(*options, "--rounds", "1", "--complete", "--two-sizes")
        assert result.exit_code == 0, result.output
        complete = json.loads((out / "models_opensoraplan-1.2_complete.json").read_text())
        assert "rehearsal" in complete["note"]
        (steps,) = chosen(complete["rows"], what="4 denoising steps", against=OPERATOR)
        assert len(steps["relative_error_per_step"]) == 4
        assert steps["relative_error"] == max(steps["relative_error_per_step"]) < 1e-4
        assert steps["finite_latents"] is True
        (step,) = chosen(complete["rows"], what="time of one step")
        assert (step["steps"], step["sparsity"]) == (4, 0.0)
        two = json.loads((out / "models_wan2.1-14b_two-sizes.json").read_text())["rows"]
        errors = chosen(two, what="one forward", run=ENGINE, against=EAGER)
        assert [row["size"] for row in errors] == ["9x64x96", "5x48x80", "9x64x96"]
        assert all(row["relative_error"] < 1e-4 for row in errors)
        (file,) = chosen(two, what="engine file")
        assert file["sha256"] == file["sha256_after"]

    def test_one_that_breaks_off_leaves_its_rows_and_the_next_runs(self, tmp_path, monkeypatch):
        def stop(*_args):
            raise RuntimeError("CUDA out of memory")

        monkeypatch.setattr(few_layers, "compiled_baseline", stop)
        monkeypatch.setattr(few_layers, "rounding", stop)
        options = ["--workdir", str(tmp_path / "w"), "--tiny", "--output", str(tmp_path)]
        models = ["--models", "cogvideox", "--models", "wan2.1-14b"]
        result = self.invoke(*options, *models)
        assert result.exit_code == 1
        for name in ("cogvideox-5b", "wan2.1-14b"):
            rows = json.loads((tmp_path / f"models_{name}.json").read_text())["rows"]
            assert rows[-1]["failed"] == "RuntimeError: CUDA out of memory"
            assert chosen(rows, what="one forward", run=ENGINE, sparsity=0.0, against=EAGER)
            assert rows[-1]["model"] == name

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            ([], "nothing to do"),
            (["--models", "allegro"], "no few-layer benchmark; choose from hunyuanvideo"),
            (["--models", "nothing"], "is unknown"),
            (["--target", "sm80", "--complete"], "--target goes with --prepare"),
        ],
    )
    def test_bad_calls(self, tmp_path, arguments, words):
        result = self.invoke(
            "--workdir", str(tmp_path), "--tiny", "--output", str(tmp_path), *arguments
        )
        assert isinstance(result.exception, InvalidInputError)
        assert words in str(result.exception)
        assert list(tmp_path.iterdir()) == []

    def test_a_rehearsal_does_not_write_among_the_results(self, tmp_path):
        result = self.invoke("--workdir", str(tmp_path), "--tiny", "--complete")
        assert "give --output" in str(result.exception)


def test_tables_know_the_benchmarks():
    assert tuple(bench_models.LAYERS) == models_table.FEW_LAYERS
    assert f"{bench_models.COMPLETE}_complete" == models_table.COMPLETE
    assert f"{bench_models.TWO_SIZES}_two-sizes" == models_table.TWO_SIZES
    names = (models_table.EAGER, models_table.COMPILED, models_table.MASKED)
    assert names == (EAGER, COMPILED, MASKED)
    assert (models_table.ENGINE, models_table.OPERATOR) == (ENGINE, OPERATOR)
    compiled = (models_table.COMPILED_SPARSE, models_table.COMPILED_AT)
    assert compiled == (few_layers.COMPILED_SPARSE, few_layers.COMPILED_AT)
