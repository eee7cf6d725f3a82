"""`Pipeline`: an exported transformer, or the PyTorch one, inside its diffusers pipeline."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from rainfusion_trt.argument_types import typed
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.models.base import VideoModel
from rainfusion_trt.operator.exact_frames import ExactFrames, ranges_of
from rainfusion_trt.parallel.config import ParallelConfig
from rainfusion_trt.parallel.sharing import sharing
from rainfusion_trt.presets import preset_of
from rainfusion_trt.runtime.artifacts import Artifacts, Files, files_by_component
from rainfusion_trt.runtime.call_arguments import choose_generator
from rainfusion_trt.runtime.choose import first_that_runs, refuse_dense
from rainfusion_trt.runtime.loading import is_in_place, load_denoiser, load_pipe
from rainfusion_trt.runtime.noise import drawn_by_seed
from rainfusion_trt.runtime.one_call import Caller, Watch
from rainfusion_trt.runtime.output import PipelineOutput
from rainfusion_trt.runtime.pipes import Pipes
from rainfusion_trt.runtime.precision import (
    GivenPrecision,
    PrecisionPlan,
    may_be_eight_bit,
    possible_precision,
    read_precision,
)
from rainfusion_trt.runtime.schedule import (
    Schedule,
    SparsitySchedule,
    choose_schedule,
    read_schedule,
    with_sparsity,
)
from rainfusion_trt.runtime.select import candidates
from rainfusion_trt.runtime.steps import Flag, Progress, StepCallback
from rainfusion_trt.runtime.turn import Turn
from rainfusion_trt.sigma_schedule import SigmaSchedule
from rainfusion_trt.step_cache.check import Caching
from rainfusion_trt.step_cache.ratios import MagnitudeRatios
from rainfusion_trt.step_cache.settings import Cache, read_cache

__all__ = ["Pipeline", "PipelineOutput"]

logger = logging.getLogger("rainfusion_trt")


class Pipeline:
    """Text, image or video to video with RainFusion attention.

    The transformer runs as a TensorRT engine, in ONNX Runtime or in PyTorch; scheduler, text
    encoder and VAE are the diffusers pipeline's own.

    Parameters
    ----------
    model : str, optional
        Registry name such as ``"cogvideox"``; by default what the engine, the ONNX file or the
        pipeline's transformer says.
    engine : path or mapping, optional
        Folder with engine.plan and metadata.json. For models with several transformers
        (``wan2.2-a14b``) one of each: ``{"transformer": a, "transformer_2": b}``.
    onnx : path or mapping, optional
        Exported ONNX file, or one of each transformer.
    engine_2, onnx_2 : path, optional
        Of the second transformer, instead of a mapping.
    checkpoint : str, optional
        Diffusers directory or hub id. Its transformer is only loaded for the torch backend. A call
        goes to the pipeline class that it names; where that takes no image, or no video, to
        another class of the model, made of the same components.
    transformer : path or mapping, optional
        Weights of the transformer, or of each, in the place of the checkpoint's: a ``.safetensors``
        or ``.gguf`` file, see `VideoModel.load`. For the torch backend.
    pipe : DiffusionPipeline, optional
        A loaded diffusers pipeline instead of a checkpoint, which makes every call; its transformer
        is replaced until `close`.
    other_classes : bool, optional
        Whether calls that the pipeline takes no argument for go to another class of the model, made
        of the same components. By default those of a `checkpoint` do, and those of a `pipe` do not.
    backend : str
        ``"auto"``, ``"tensorrt"``, ``"tensorrt_rtx"``, ``"onnxruntime"`` or ``"torch"``. ``auto``
        takes the engine if given, else the ONNX file, else the PyTorch transformer.
    allow_fallback : bool
        Try the next of that order, with a warning, where the first choice cannot run here. By
        default that is an error.
    allow_dense : bool
        Accept attention that is dense although a sparsity is asked: of a backend that has no other
        (ONNX Runtime), of a clip with too few frames, of a block whose attention something else
        has taken. It is logged, and the result says so. By default that is an error.
    preset : str, optional
        ``"quality"``, ``"balanced"`` or ``"fast"``: sets `method`, `sparsity` and a schedule that
        is dense while sigma, the share of noise, is large. What else is given goes before it. Of 4
        to 8 steps about half are dense then; `dense_fraction` beside it counts steps instead.
    sparsity, dense_fraction : float, optional
        A schedule by steps: the first `dense_fraction` (default 0.1) of the steps dense, the others
        at `sparsity` (default 0.5).
    schedule : callable, iterable of float or SigmaSchedule, optional
        Sparsity per step instead: ``schedule(step, steps)``, one value per step, or by sigma.
    method, alpha, sink_frames, last_sink_frames, exact_frames : optional
        Attention settings of the torch backend; in an exported file they are fixed. A model that is
        given the last picture too keeps it exact with ``last_sink_frames=1``, and pictures in the
        middle with their latent frames, as in ``exact_frames=(4, (8, 10))``.
    precision : str, PrecisionSchedule, callable or iterable of str, optional
        "16bit", or "8bit" for products of 8-bit operands (docs/rainfusion.md) on GPUs of compute
        capability 8.9 and newer: of all steps, or of each, as ``precision(step, steps)`` or one
        value per step. By default what a file or engine was exported with, and 16 bits in PyTorch.
        An engine of 16 bits has no others; one of 8 has both.
    dense_layers : sequence of int, optional
        Self-attentions, numbered from 0, that stay dense in every step: the torch backend alone.
    cache : str or CacheSettings, optional
        Skip steps that change little, on every backend (docs/caching.md): ``"easy"`` by what it
        sees, ``"mag"`` by calibrated ratios; ``"off"`` by default.
    cache_threshold : float, optional
        How much error may gather while steps are skipped; 0 skips none. By default the rule's.
    cache_ratios : path or MagnitudeRatios, optional
        What ``rainfusion-trt calibrate-cache`` wrote, for ``cache="mag"`` here or in a call.
    cuda_graph : bool
        Replay each call of the engine as a CUDA graph.
    compile : bool
        Give the blocks of the PyTorch transformer to torch.compile, with the torch backend alone.
        The first call of a size takes longer; steps and sparsities compile nothing anew.
    device : str or torch.device, optional
        By default the GPU where there is one, else the CPU.
    cpu_offload : bool
        Keep text encoder and VAE in host memory while they do not run.
    dtype : torch.dtype, optional
        Of a pipeline loaded from `checkpoint`; by default the engine's or the model's.
    parallel : ParallelConfig, optional
        Several processes, one GPU each, make one clip: PyTorch, and engines of a model that was
        exported for it (docs/parallel.md).
        Only the first process gets frames, logs, shows progress and calls back.
    wait : bool
        Let calls from several threads queue. By default a call while another one runs is an error.

    Raises
    ------
    InvalidInputError, BackendUnavailableError, EngineLoadError, UnsupportedError
        What was given does not fit together, or cannot run here.

    Examples
    --------
    >>> pipe = Pipeline(engine="engines/cogvideox-5b", checkpoint="zai-org/CogVideoX-5b")
    >>> video = pipe("A panda plays the guitar", seed=0).frames[0]
    """

    @typed
    def __init__(
        self,
        model: str | None = None,
        *,
        engine: Files = None,
        onnx: Files = None,
        engine_2: str | Path | None = None,
        onnx_2: str | Path | None = None,
        checkpoint: str | Path | None = None,
        transformer: Files = None,
        pipe: Any = None,
        other_classes: bool | None = None,
        backend: str = "auto",
        allow_fallback: bool = False,
        allow_dense: bool = False,
        preset: str | None = None,
        sparsity: float | None = None,
        dense_fraction: float | None = None,
        schedule: Schedule | None = None,
        method: str | None = None,
        alpha: float | None = None,
        sink_frames: int | None = None,
        last_sink_frames: int | None = None,
        exact_frames: ExactFrames | None = None,
        precision: GivenPrecision | None = None,
        dense_layers: Sequence[int] | None = None,
        cache: Cache = None,
        cache_threshold: float | None = None,
        cache_ratios: MagnitudeRatios | str | Path | None = None,
        cuda_graph: bool = False,
        compile: bool = False,
        device: str | torch.device | None = None,
        cpu_offload: bool = False,
        dtype: torch.dtype | None = None,
        parallel: ParallelConfig | None = None,
        wait: bool = False,
    ) -> None:
        chosen = preset_of(preset)
        self.schedule = choose_schedule(chosen, sparsity, dense_fraction, schedule)
        self.dense_fraction = dense_fraction
        if chosen is not None:
            method = chosen.method if method is None else method
            dense_layers = chosen.dense_layers if dense_layers is None else dense_layers
        asked = None if precision is None else read_precision(precision)
        self._ratios = MagnitudeRatios.read(cache_ratios)
        self.cache = read_cache(cache, cache_threshold, self._ratios)
        self.wait = wait
        self._turn = Turn()
        self._closed = False
        self.allow_dense = allow_dense
        self.artifacts = Artifacts.read(
            model=model,
            engine=files_by_component("engine", engine, engine_2),
            onnx=files_by_component("onnx", onnx, onnx_2),
            checkpoint=checkpoint,
            weights=files_by_component("transformer", transformer, None),
            pipe=pipe,
            settings={
                "method": method,
                "alpha": alpha,
                "sink_frames": sink_frames,
                "last_sink_frames": last_sink_frames,
                "exact_frames": None if exact_frames is None else ranges_of(exact_frames),
                "precision": _of_settings(asked),
            },
            dtype=dtype,
        )
        self.model: VideoModel = self.artifacts.model
        for ratios in (self._ratios, self.cache.ratios if self.cache else None):
            if ratios is not None:
                ratios.check_model(self.model.name)
        names = candidates(backend, self.artifacts.sources, allow_fallback=allow_fallback)
        self._refuse_dense_default(names[0])
        self.sharing = sharing(parallel, device, names, self.artifacts.parts)
        load = functools.partial(
            load_denoiser,
            artifacts=self.artifacts,
            device=self.sharing.place(device),
            cuda_graph=cuda_graph,
            allow_dense=allow_dense,
            compile=compile,
        )
        with self.sharing.together():
            self.denoiser = first_that_runs(names, load)
        try:
            with self.sharing.together():
                self.denoiser = self.sharing.denoiser(self.denoiser, self.model)
                self.denoiser.keep_dense(() if dense_layers is None else dense_layers)
                self.pipe = load_pipe(self.artifacts, self.denoiser, cpu_offload=cpu_offload)
            pipes = Pipes(
                self.model,
                self.pipe,
                fixed=pipe is not None if other_classes is None else not other_classes,
                offload_device=self.denoiser.device if cpu_offload else None,
            )
            self.precision = possible_precision(asked, self.artifacts.precision, self.denoiser)
        except BaseException:
            self.denoiser.close()
            if pipe is not None:
                self._give_back(pipe)
            raise
        self._caller = Caller(self.artifacts, self.denoiser, pipes, allow_dense, self.sharing)
        logger.info(
            "%s on %s: %s", self.denoiser.name, self.denoiser.device, self.denoiser.describe()
        )

    @property
    def backend(self) -> str:
        """Name of the backend that runs."""
        return self.denoiser.name

    @property
    def device(self) -> torch.device:
        """Where the transformer runs."""
        return self.denoiser.device

    def takes(self, *media: str) -> bool:
        """Whether a call can be made of a text and these of `runtime.pipes.MEDIA`, and no others.

        Examples
        --------
        >>> pipe.takes("image"), pipe.takes()  # doctest: +SKIP
        (True, False)
        """
        return self._caller.pipes.takes(*media)

    @typed
    def __call__(
        self,
        prompt: str | list[str] | None = None,
        *,
        image: Any = None,
        last_image: Any = None,
        video: Any = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        seed: int | None = None,
        sparsity: float | None = None,
        schedule: Schedule | None = None,
        precision: GivenPrecision | None = None,
        cache: Cache | Caching = None,
        cache_threshold: float | None = None,
        callback_on_step_end: StepCallback | None = None,
        progress: Progress | None = None,
        cancel: Flag | None = None,
        profile: bool = False,
        return_dict: bool = True,
        **kwargs: Any,
    ) -> PipelineOutput | tuple[Any]:
        """Make a video.

        Parameters
        ----------
        prompt
            One text, or one per clip.
        image, last_image
            Pictures that the clip begins and ends with: a path, an image of Pillow, a NumPy array
            [H, W, 3] or a tensor [3, H, W]; see `rainfusion_trt.images.read_image`.
        video
            Clip to start from: a path, a list of pictures, an array [T, H, W, 3] or a tensor
            [T, 3, H, W].
        num_frames, height, width
            Size of the clip in pixels; by default what the engine was exported for, else what the
            diffusers pipeline uses. A picture of another shape is fitted as that pipeline does.
        num_inference_steps, guidance_scale
            By default the diffusers pipeline's.
        generator, seed
            Source of the noise; `seed` makes a CPU generator, so that it gives the same noise on
            every device. What schedulers draw without a generator follows a `seed` too, on its
            device.
        sparsity
            Of this run; 0 is dense. The first steps stay dense as set in the constructor.
        schedule
            Of this run, instead of `sparsity`: ``schedule(step, steps)``, one value per step, or a
            `SigmaSchedule`.
        precision
            Of this run, instead of that of the constructor. In PyTorch 8 bits have to be named
            there already.
        cache, cache_threshold
            Of this run, instead of those of the constructor; ``cache="off"`` runs every step.
        callback_on_step_end
            As in diffusers.
        progress
            Called as ``progress(done, steps)`` before the first step and after each. What it
            raises, such as `errors.GenerationCancelled`, ends the call.
        cancel
            A `threading.Event`, or anything with `is_set`: once it is set, the call ends between
            two steps.
        profile
            Measure every step.
        return_dict
            False for a plain ``(frames,)``, as in diffusers.
        **kwargs
            To the diffusers pipeline: `negative_prompt`, `strength`, `output_type`, `latents`, ...

        Returns
        -------
        PipelineOutput

        Raises
        ------
        InvalidInputError
            Arguments that do not fit, before any work starts; or the pipeline is closed, or makes a
            video in another thread.
        DenseAttentionError
            A step ran dense although a sparsity was asked for.
        GenerationCancelled
            `cancel` was set. The Pipeline can be called again.
        NotFiniteError
            The latents after the last step, or the frames, hold NaN or infinity.
        """
        with self._turn.taken(wait=self.wait):
            if self._closed:
                raise InvalidInputError("this Pipeline is closed: make a new one")
            kwargs.update(
                prompt=prompt,
                image=image,
                last_image=last_image,
                video=video,
                num_frames=num_frames,
                height=height,
                width=width,
                num_inference_steps=num_inference_steps,
                guidance_scale=guidance_scale,
                generator=choose_generator(generator, seed),
            )
            given = {name: value for name, value in kwargs.items() if value is not None}
            chosen = self._schedule_of_call(sparsity, schedule)
            plan = self.precision
            if precision is not None:
                plan = possible_precision(read_precision(precision), "16bit", self.denoiser)
            watch = Watch(callback_on_step_end, progress, cancel, profile)
            caching = self._caching(cache, cache_threshold)
            with drawn_by_seed(seed, self.device):
                output = self._caller.run(chosen, given, watch, caching, plan)
        return output if return_dict else (output.frames,)

    def close(self) -> None:
        """Free the engine and give the diffusers pipeline its own transformers back.

        Waits for a call that runs in another thread. Calls afterwards are an error; closing again
        does nothing.
        """
        with self._turn.taken(wait=True):
            if self._closed:
                return
            self._closed = True
            self._give_back(self.pipe)
            self.denoiser.close()

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _give_back(self, pipe: Any) -> None:
        parts = zip(self.artifacts.parts, self.denoiser.components, strict=True)
        for part, ours in parts:
            if is_in_place(pipe, part.component, ours):  # else the user has put another there
                setattr(pipe, part.component, part.original)

    def _refuse_dense_default(self, name: str) -> None:
        """Fail before anything is loaded where the default schedule is sparse, the backend not."""
        plan = self.schedule
        is_sparse = isinstance(plan, (SparsitySchedule, SigmaSchedule)) and plan.peak > 0
        if name == "onnxruntime" and is_sparse:
            refuse_dense(name, allow_dense=self.allow_dense)

    def _caching(self, cache: Cache | Caching, threshold: float | None) -> Caching | None:
        """How the steps of a call are cached."""
        if isinstance(cache, Caching):
            return cache
        settings = read_cache(cache, threshold, self._ratios, usual=self.cache)
        if settings is None:
            return None
        if settings.ratios is not None:
            settings.ratios.check_model(self.model.name)
        return Caching(settings)

    def _schedule_of_call(self, sparsity: float | None, schedule: Schedule | None) -> Schedule:
        if sparsity is not None and schedule is not None:
            raise InvalidInputError("give sparsity or schedule, not both")
        if sparsity is not None:
            if isinstance(self.schedule, SigmaSchedule):
                return with_sparsity(self.schedule, sparsity)
            return choose_schedule(None, sparsity, self.dense_fraction, None)
        return self.schedule if schedule is None else read_schedule(schedule)


def _of_settings(asked: PrecisionPlan | None) -> str | None:
    """What has to be there for it: 8 bits where any step has them."""
    if asked is None:
        return None
    return "8bit" if may_be_eight_bit(asked) else "16bit"
