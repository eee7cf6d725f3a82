"""The worker that makes videos with `rainfusion_trt.Pipeline`."""

from __future__ import annotations

import dataclasses
import time
from pathlib import Path
from typing import Any

from rainfusion_trt.console import one_line
from rainfusion_trt.errors import InvalidInputError, UnsupportedError
from rainfusion_trt.operator.settings import METHODS
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.presets import preset_of
from rainfusion_trt.runtime.artifacts import check_weight_files, files_by_component
from rainfusion_trt.runtime.call_arguments import asked_steps
from rainfusion_trt.runtime.clip_ranges import ClipRange, clip_ranges
from rainfusion_trt.runtime.pipeline import Pipeline, PipelineOutput
from rainfusion_trt.runtime.precision import precision_of_options
from rainfusion_trt.runtime.schedule import Schedule, choose_schedule
from rainfusion_trt.runtime.steps import Flag
from rainfusion_trt.serve.defaults import read_defaults
from rainfusion_trt.serve.media import BY_NAME, starts_of
from rainfusion_trt.serve.pipeline_parts import (
    demo_pipeline,
    device_fault,
    load_pipeline,
    parameters,
    picture,
    steps_of,
)
from rainfusion_trt.serve.usual_attention import UsualAttention
from rainfusion_trt.serve.worker import (
    GenerationRequest,
    Media,
    ModelDescription,
    OnStep,
    Ran,
    SizeRange,
)
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import RULES
from rainfusion_trt.video import save_video, to_uint8


class PipelineWorker:
    """A loaded `Pipeline`.

    Parameters
    ----------
    demo : bool
        The small trained model that ships with the package, instead of a checkpoint.
    pipe : DiffusionPipeline, optional
        A loaded pipeline, instead of a checkpoint.
    model, checkpoint, engine, engine_2, onnx, onnx_2, device, cuda_graph, compile, cpu_offload
        Of `Pipeline`.
    transformer, transformer_2 : str, optional
        Files of weights in the place of the checkpoint's, as `Pipeline` takes them in PyTorch.
    vae_tiling : bool
        Decode in tiles.
    attention_precision, first_16bit, last_16bit
        Precision of attention, and shares of the steps that are in 16 bits beside 8.
    cache, cache_threshold, cache_ratios
        Of `Pipeline`, for requests that name no cache; the ratios are for all.
    defaults : mapping, optional
        width, height, frames, fps, steps, guidance: instead of the model's.
    gpus : int
        How many this worker was given: one; see `rainfusion_trt.serve.group_worker` for more.
    parallel : ParallelConfig, optional
        This process is one of several that make a clip together, see `take_part`.
    **attention
        Sparse attention, by the names that `Pipeline` has: see `UsualAttention`. A preset is for
        requests that name neither preset, sparsity nor method, a method for those that name none
        and no preset, a sparsity for those that name neither of the two, and a dense_fraction for
        those that name no preset; all else is for all requests.

    Raises
    ------
    RainFusionError
        What was given does not fit together, or cannot run here.
    """

    def __init__(
        self,
        *,
        demo: bool = False,
        pipe: Any = None,
        model: str | None = None,
        checkpoint: str | None = None,
        engine: str | None = None,
        engine_2: str | None = None,
        onnx: str | None = None,
        onnx_2: str | None = None,
        transformer: str | None = None,
        transformer_2: str | None = None,
        device: str | None = None,
        cuda_graph: bool = False,
        compile: bool = False,
        cpu_offload: bool = False,
        vae_tiling: bool = False,
        attention_precision: str | None = None,
        first_16bit: float | None = None,
        last_16bit: float | None = None,
        cache: str | None = None,
        cache_threshold: float | None = None,
        cache_ratios: str | None = None,
        defaults: dict[str, Any] | None = None,
        gpus: int = 0,
        parallel: ParallelConfig | None = None,
        **attention: Any,
    ) -> None:
        if gpus > 1:
            raise InvalidInputError(
                f"gpus={gpus}: this worker runs on one GPU; name the factory "
                "rainfusion_trt.serve.group_worker:pipeline_worker"
            )
        self._attends = UsualAttention(**attention)
        self._preset = self._attends.preset
        self._defaults = given = read_defaults(defaults)
        self._fault: str | None = None
        device = device or ("cuda" if gpus else "cpu")
        files = {"engine": engine, "engine_2": engine_2, "onnx": onnx, "onnx_2": onnx_2}
        self._options: dict[str, Any] = {"device": device, "cpu_offload": cpu_offload}
        self._options |= self._attends.of_pipeline
        self._options |= {"cache": cache, "cache_threshold": cache_threshold}
        self._options |= {"cache_ratios": MagnitudeRatios.read(cache_ratios)}
        precision = precision_of_options(attention_precision, first_16bit, last_16bit)
        self._options["precision"] = precision
        if parallel is not None:
            self._options["parallel"] = parallel
        self._exported = any(files.values())
        weights = files_by_component("transformer", transformer, transformer_2)
        if demo:
            pipe, extra = demo_pipeline(device)
            self._defaults = {**extra, **given}
        check_weight_files(weights, pipe, exported=self._exported)
        if not self._exported:
            # The pipeline is kept whole, so that another method takes no loading.
            # Of a checkpoint's components other classes of the model are made, as by `Pipeline`.
            self._options["other_classes"] = pipe is None
            pipe = pipe or load_pipeline(model, checkpoint, weights)
            self._options |= {"pipe": pipe, "model": model}
            self._options |= {"backend": "torch", "compile": compile}
        else:
            source = {"pipe": pipe} if pipe is not None else {"checkpoint": checkpoint}
            self._options |= {"model": model, "cuda_graph": cuda_graph, **files, **source}
            if not (engine or engine_2):  # dense attention: see describe()
                self._options["sparsity"] = 0.0
        self._pipeline = Pipeline(**self._options, method=self._attends.method)
        self._usual = self._pipeline.artifacts.settings.method
        self._pipeline.pipe.set_progress_bar_config(disable=True)  # clients see the progress
        self._starts = starts_of(self._takes)
        if not self._starts:
            self._pipeline.close()
            raise InvalidInputError(
                f"{type(self._pipeline.pipe).__name__} starts from something else than requests "
                f"bring ({', '.join(BY_NAME)}): use `rainfusion-trt run` or Pipeline"
            )
        self._check_usual()
        self._mag_steps = self._steps_of_mag(asked=given.get("steps"))
        if vae_tiling:
            self._pipeline.pipe.vae.enable_tiling()

    def describe(self) -> ModelDescription:
        """What it makes videos with."""
        pipeline, model = self._pipeline, self._pipeline.model
        size, ranges = pipeline.artifacts.size or model.defaults.size, self._ranges()
        if ranges and not any(size in one for one in ranges):  # exported for a size of its own
            size = ranges[-1].largest
        first, step = model.frame_counts()
        takes = parameters(pipeline.pipe)
        guidance = takes["guidance_scale"].default if "guidance_scale" in takes else None
        values = {
            "width": size.width,
            "height": size.height,
            "frames": size.frames,
            "fps": model.defaults.fps,
            "steps": takes["num_inference_steps"].default,
            "guidance": guidance,
        }
        return ModelDescription(
            model=model.name,
            backend=pipeline.backend,
            fixed_size=pipeline.artifacts.size is not None and not pipeline.artifacts.dynamic,
            pixels_step=model.vae_pixels * model.patch_pixels,
            frames_first=first,
            frames_step=step,
            ranges=tuple(SizeRange.model_validate(dataclasses.asdict(one)) for one in ranges),
            methods=self._methods(),
            preset=self._preset,
            caches=tuple(name for name in RULES if name != "mag" or self._mag_steps is not None),
            cache_steps=self._mag_steps,
            cache=None if pipeline.cache is None else pipeline.cache.rule,
            starts=self._starts,
            takes_negative_prompt="negative_prompt" in takes,
            **{**values, **self._defaults},
        )

    def generate(
        self, request: GenerationRequest, media: Media, output: Path, on_step: OnStep
    ) -> Ran:
        """Make a video; see `rainfusion_trt.serve.worker.Worker`."""
        ran = self.take_part(request, media, output, on_step)
        assert ran is not None  # nobody else makes it
        return ran

    def take_part(
        self,
        request: GenerationRequest,
        media: Media,
        output: Path,
        on_step: OnStep,
        cancel: Flag | None = None,
    ) -> Ran | None:
        """Make a video, or a share of it: of several processes the first writes, and has an answer.

        Parameters
        ----------
        request, media, output, on_step
            See `generate`; of several processes the first calls `on_step`, which must not raise.
        cancel
            Ends the call between two steps, in all processes.
        """
        try:
            return self._make(request, media, output, on_step, cancel)
        except Exception:
            self._fault = self._fault or device_fault(self._pipeline.device)
            raise

    def _make(
        self,
        request: GenerationRequest,
        media: Media,
        output: Path,
        on_step: OnStep,
        cancel: Flag | None,
    ) -> Ran | None:
        schedule, method, dense_layers = self._attention(request)
        self._choose(method)
        pipeline = self._pipeline
        pipeline.denoiser.keep_dense(dense_layers)
        arguments: dict[str, Any] = {"negative_prompt": request.negative_prompt}
        arguments |= {name: picture(data) for name, data in media.items()}
        start = time.monotonic()
        result = pipeline(
            request.prompt,
            num_frames=request.frames,
            height=request.height,
            width=request.width,
            num_inference_steps=request.steps,
            guidance_scale=request.guidance,
            seed=request.seed,
            schedule=schedule,
            cache=request.cache,
            cache_threshold=request.cache_threshold,
            output_type="np",
            profile=True,
            progress=lambda done, steps: on_step(done, steps) if done else None,
            cancel=cancel,
            **arguments,
        )
        assert isinstance(result, PipelineOutput)  # return_dict is true
        if result.frames is None:
            return None
        clip = to_uint8(result.frames[0])
        made = time.monotonic()
        save_video(clip, output, fps=request.fps)
        frames, height, width, _ = clip.shape
        steps = steps_of(result)
        sparse = any(step.sparsity > 0.0 for step in steps)
        guidance = getattr(pipeline.pipe, "guidance_scale", None)
        return Ran(
            model=pipeline.model.name,
            backend=result.backend,
            device=str(pipeline.device),
            method=pipeline.artifacts.settings.method if sparse else None,
            seed=request.seed,
            width=width,
            height=height,
            frames=frames,
            fps=request.fps,
            guidance=None if guidance is None else float(guidance),
            steps=steps,
            generate_seconds=made - start,
            encode_seconds=time.monotonic() - made,
            cache=None if result.cache is None else result.cache.rule,
            cache_threshold=None if result.cache is None else result.cache.threshold,
        )

    def fault(self) -> str | None:
        """Why it has to be replaced; None while it works."""
        return self._fault or self._pipeline.sharing.fault()

    def close(self) -> None:
        """Free what it holds."""
        self._pipeline.close()

    def _takes(self, *media: str) -> bool:
        """Whether requests may have these files.

        A graph of one size makes one clip here, and not a shorter one where a pipeline adds frames
        for them.
        """
        made = self._pipeline.artifacts
        if made.size is not None and not made.dynamic:
            try:
                clip = made.model.clip_of_graph(made.size, dict.fromkeys(media))
            except InvalidInputError:  # of no frame at all
                return False
            if clip != made.size:
                return False
        return self._pipeline.takes(*media)

    def _ranges(self) -> tuple[ClipRange, ...]:
        """Of the engines that run; other backends take all sizes, or one."""
        if self._pipeline.backend in ("torch", "onnxruntime"):
            return ()
        return clip_ranges(self._pipeline.artifacts, self._pipeline.backend)

    def _check_usual(self) -> None:
        """Refuse attention of the settings that no request could be made with."""
        preset, methods = preset_of(self._preset), self._methods()
        try:
            if not methods:
                self._attends.check_sparse(self._pipeline.backend)
            elif preset and self._attends.method is None and preset.method not in methods:
                raise InvalidInputError(
                    f"preset {self._preset} is of method {preset.method!r}, and this worker has "
                    f"{', '.join(methods)}: leave it out, or give sparsity"
                )
        except InvalidInputError:
            self._pipeline.close()
            raise

    def _steps_of_mag(self, asked: int | None) -> int | None:
        """The `num_inference_steps` that the rule "mag" can have; None without its ratios.

        Refuses what no request could have, and lets those that name no steps have as many.
        """
        ratios: MagnitudeRatios | None = self._options["cache_ratios"]
        if ratios is None:
            return None
        pipe, cache = self._pipeline.pipe, self._pipeline.cache
        steps = asked_steps(pipe.scheduler, ratios.steps)
        try:
            ratios.check_pipe(pipe)
            if cache is not None and cache.rule == "mag":
                if asked not in (None, steps):
                    raise InvalidInputError(
                        f"cache='mag' was calibrated for {steps} steps, and requests get {asked} "
                        f"by default: let them have {steps}, or calibrate for {asked}"
                    )
                self._defaults["steps"] = steps
        except InvalidInputError:
            self._pipeline.close()
            raise
        return steps

    def _methods(self) -> tuple[str, ...]:
        if not self._pipeline.denoiser.sparse:
            return ()
        if self._exported:
            return (self._usual,)
        others = (method for method in METHODS if method != self._usual)
        return (self._usual, *(method for method in others if self._has(method)))

    def _has(self, method: str) -> bool:
        """Whether PyTorch can run a method in the precision of this worker's steps."""
        try:
            self._pipeline.artifacts.settings.replace(method=method)
        except UnsupportedError:  # 8 bits have no textural heads
            return False
        return True

    def _attention(self, request: GenerationRequest) -> tuple[Schedule, str, tuple[int, ...]]:
        """Sparsity by step, method and dense layers of a request, or by default."""
        asked = (request.preset, request.sparsity, request.method)
        if not self._pipeline.denoiser.sparse:
            names = [name for name in ("preset", "sparsity", "method") if getattr(request, name)]
            if names:  # of a job that was taken before a restart with another backend
                raise InvalidInputError(
                    f"{names[0]}={getattr(request, names[0])!r} was asked for, and attention is "
                    f"dense on this server by now ({self._pipeline.backend}): leave it out"
                )
            return choose_schedule(None, 0.0, None, None), self._usual, ()
        preset = preset_of(request.preset if any(v is not None for v in asked) else self._preset)
        named = request.preset is not None
        schedule = self._attends.schedule(preset, request.sparsity, named=named)
        own = self._usual if preset is None else preset.method
        if not named and self._attends.method is not None:  # which goes before the usual preset's
            own = self._usual
        return schedule, request.method or own, self._attends.dense_layers(preset)

    def _choose(self, method: str) -> None:
        """Let the pipeline have a method; PyTorch's is made anew around the same modules."""
        current = self._pipeline.artifacts.settings.method
        if method == current:
            return
        if self._exported:
            raise InvalidInputError(
                f"method={method!r} was asked for, and what runs here was exported with "
                f"{current!r}: leave it out"
            )
        self._pipeline.close()
        try:
            self._pipeline = Pipeline(**self._options, method=method)
        except Exception:
            try:
                self._pipeline = Pipeline(**self._options, method=current)
            except Exception as error:  # closed as it is, it would refuse all requests that come
                self._fault = f"its pipeline cannot be made again: {one_line(str(error))}"
            raise
