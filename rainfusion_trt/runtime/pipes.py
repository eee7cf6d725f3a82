"""Which diffusers pipeline makes a call: one transformer serves text, image and video."""

from __future__ import annotations

import difflib
import inspect
import logging
import sys
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch

from rainfusion_trt.errors import BackendUnavailableError, InvalidInputError
from rainfusion_trt.models.base import VideoModel

logger = logging.getLogger("rainfusion_trt")

MEDIA = (
    *("image", "last_image", "video", "control_video"),
    *("pose_video", "face_video", "background_video", "mask_video"),  # Wan Animate
    *("mask", "reference_images"),  # Wan VACE
    "cond_image",  # LTX-Video, long clips
)
"""Pictures and clips among the arguments of pipelines, which a generation may start from."""

# How diffusers names the classes that do not work without such an argument, though it may have a
# default there.
_NEEDED_BY = {
    "image": ("ImageToVideo", "Image2Video"),
    "video": ("VideoToVideo",),
    "control_video": ("Control",),
}


def parameters_of(pipeline_class: Any) -> Mapping[str, inspect.Parameter]:
    """Parameters of the calls of a diffusers pipeline class."""
    return inspect.signature(pipeline_class.__call__).parameters


def unknown_arguments(pipeline_class: Any, names: Iterable[str]) -> list[str]:
    """Those of the names that its calls do not take."""
    known = parameters_of(pipeline_class)
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
        return []
    return [name for name in names if name not in known]


def check_media(pipe: Any, arguments: Iterable[str]) -> None:
    """Raise InvalidInputError where a pipeline gets no image or video, or would leave one out."""
    given = set(arguments)
    if _leaves_out(pipe, given):
        raise InvalidInputError(
            f"{type(pipe).__name__} with expand_timesteps leaves last_image out: give image= alone"
        )
    for name, always in _needed(type(pipe)).items():
        if name not in given and (always or not any("latents" in other for other in given)):
            raise InvalidInputError(f"{type(pipe).__name__} starts from {name}: give {name}=")


def _leaves_out(pipe: Any, media: Collection[str]) -> bool:
    """Whether a pipeline would take last_image and make nothing of it."""
    return "last_image" in media and bool(pipe.config.get("expand_timesteps"))


def _needed(pipeline_class: Any) -> dict[str, bool]:
    """Media that a class does not work without -> whether latents cannot stand for them."""
    known, name_of_class = parameters_of(pipeline_class), pipeline_class.__name__
    needed = {}
    for name in MEDIA:
        if name in known:
            always = known[name].default is inspect.Parameter.empty
            marks = _NEEDED_BY.get(name, ())
            if always or any(mark in name_of_class for mark in marks):
                needed[name] = always
    return needed


def modes_of(model: VideoModel) -> tuple[str, ...]:
    """What the model's generations may start from: "text" alone, or one of `MEDIA` with it."""
    modes: dict[str, None] = {}
    for one in diffusers_classes(model):
        needed = _needed(one)
        if not needed:
            modes["text"] = None
        taken = [name for name in _NEEDED_BY if name in (needed or parameters_of(one))]
        modes.update(dict.fromkeys(taken))
    return tuple(name for name in ("text", *_NEEDED_BY) if name in modes)


def check_packages(pipe: Any) -> None:
    """Raise BackendUnavailableError where a pipeline cleans its texts by a package that is missing.

    Some of Wan's call ftfy without asking whether it is there.
    """
    from diffusers.utils import is_ftfy_available

    clean = getattr(sys.modules[type(pipe).__module__], "basic_clean", None)
    names = getattr(getattr(clean, "__code__", None), "co_names", ())
    if "ftfy" in names and "is_ftfy_available" not in names and not is_ftfy_available():
        raise BackendUnavailableError(f"{type(pipe).__name__} needs ftfy: pip install ftfy")


def diffusers_classes(model: VideoModel) -> tuple[Any, ...]:
    """The model's pipeline classes that the installed diffusers has, the usual one first."""
    import diffusers

    names = (model.pipeline_class, *model.other_pipelines)
    found = (getattr(diffusers, name, None) for name in names)
    return tuple(one for one in found if one is not None)


def class_of_checkpoint(model: VideoModel, checkpoint: str) -> Any:
    """The pipeline class that a checkpoint's model_index.json names.

    Raises
    ------
    InvalidInputError
        There is no such file, or it names a pipeline without a transformer.
    """
    import diffusers

    try:
        named = diffusers.DiffusionPipeline.load_config(checkpoint).get("_class_name")
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} cannot be loaded, as it is no diffusers directory or hub "
            f"id: {error}"
        ) from error
    found = getattr(diffusers, named, None) if isinstance(named, str) else None
    usual = diffusers_classes(model)
    if found is None:  # a class of the user's own, or of a release to come
        logger.warning(
            "checkpoint %s names the pipeline %s, which this diffusers does not have: %s is used",
            checkpoint,
            named,
            model.pipeline_class,
        )
        return usual[0]
    if found not in usual and "transformer" not in inspect.signature(found.__init__).parameters:
        raise InvalidInputError(
            f"checkpoint {checkpoint!r} is of a {named}, which has no transformer: give one of "
            f"{model.name}, or the model it belongs to"
        )
    return found


def class_that_takes(model: VideoModel, first: Any, names: Iterable[str], *, fixed: bool) -> Any:
    """`first`, or another pipeline class of the model, whose calls take all of the arguments.

    Parameters
    ----------
    first
        The class of the pipeline that is there.
    names
        Arguments that are given.
    fixed
        Whether no other may be made in its place.

    Raises
    ------
    InvalidInputError
        None takes them.
    """
    names = list(names)
    unknown = unknown_arguments(first, names)
    if not unknown:
        return first
    others = [other for other in diffusers_classes(model) if other is not first]
    able = next((other for other in others if not unknown_arguments(other, names)), None)
    if able is not None and not fixed:
        return able
    said = f"{first.__name__} takes no {' and no '.join(unknown)}"
    if able is not None:
        remedy = f"{able.__name__} does: make one of the same components and give that as pipe="
        raise InvalidInputError(f"{said}; {remedy}")
    if set(unknown) & set(MEDIA) and not fixed:
        classes = ", ".join(dict.fromkeys(c.__name__ for c in (first, *others)))
        media = [name for name in names if name in MEDIA]
        asked = " with ".join(media)
        near = next((other for other in others if not unknown_arguments(other, media)), None)
        if near is not None:
            beside = " and no ".join(unknown_arguments(near, names))
            raise InvalidInputError(
                f"{near.__name__}, which takes {asked}, takes no {beside}: leave that out"
            )
        raise InvalidInputError(
            f"{model.name} takes no {asked}: no pipeline of it does ({classes}); leave it out, or "
            "use a model that takes it"
        )
    if unknown == ["guidance_scale"] and "guider" in inspect.signature(first.__init__).parameters:
        said += ": set pipe.guider of this pipeline instead"
    raise InvalidInputError(said + _meant(first, unknown[0]))


def _meant(pipeline_class: Any, name: str) -> str:
    """What may be meant by an argument that no call takes; empty if nothing is like it."""
    from rainfusion_trt.runtime.pipeline import Pipeline

    if name in inspect.signature(Pipeline).parameters:
        return f": {name} is of all calls, give it to Pipeline(...)"
    known = {*parameters_of(pipeline_class), *parameters_of(Pipeline)} - {"self", "kwargs", name}
    like = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.8)
    return f": is {like[0]} meant?" if like else ""


class Pipes:
    """The diffusers pipelines of one set of components, of which each is made once.

    Parameters
    ----------
    model
        Says which classes there are.
    first
        The pipeline of the checkpoint, or the user's own.
    fixed
        Whether `first` makes every call, as the user's own does by default.
    offload_device
        Where models go in turn, if `first` offloads them; None if all are there.
    """

    def __init__(
        self,
        model: VideoModel,
        first: Any,
        *,
        fixed: bool,
        offload_device: torch.device | None = None,
    ) -> None:
        self.first = first
        self._model = model
        self._fixed = fixed
        self._offload_device = offload_device
        self._made: dict[Any, Any] = {type(first): first}
        self._latest = first

    def takes(self, *media: str) -> bool:
        """Whether a call can be made of a text and these of `MEDIA`, and no others."""
        if _leaves_out(self.first, media):
            return False
        try:
            self._model.check_start(media)
        except InvalidInputError:
            return False
        first = type(self.first)
        classes = (first,) if self._fixed else (first, *diffusers_classes(self._model))
        return any(
            set(_needed(one)) <= set(media) and not unknown_arguments(one, media) for one in classes
        )

    def for_call(self, names: Iterable[str]) -> Any:
        """The pipeline that takes these arguments, with the components that `first` has now.

        Raises
        ------
        InvalidInputError
            None takes them, or what does cannot be made of these components.
        """
        wanted = class_that_takes(self._model, type(self.first), names, fixed=self._fixed)
        if wanted not in self._made:
            self._made[wanted] = _from_components(wanted, self.first)
            logger.info("%s makes it, of the same components", wanted.__name__)
        pipe = self._made[wanted]
        if pipe is not self.first:
            for name, component in self.first.components.items():
                if name in pipe.components and getattr(pipe, name) is not component:
                    setattr(pipe, name, component)  # changed by the user since
        if self._offload_device is not None and pipe is not self._latest:
            pipe.enable_model_cpu_offload(device=self._offload_device)
        self._latest = pipe
        return pipe


def _from_components(wanted: Any, pipe: Any) -> Any:
    """A pipeline of another class, of the components and settings of one that is there.

    As diffusers' `from_pipe`, which also brings all components to one dtype.
    """
    there = {**pipe.config, **pipe.components}
    parameters = dict(inspect.signature(wanted.__init__).parameters)
    parameters.pop("self")
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in there and parameter.default is parameter.empty
    ]
    if missing:
        raise InvalidInputError(
            f"{wanted.__name__} needs {', '.join(missing)}, which this checkpoint has not: use a "
            "checkpoint that has it"
        )
    made = wanted(**{name: there[name] for name in parameters if name in there})
    made.set_progress_bar_config(**getattr(pipe, "_progress_bar_config", {}))
    return made
