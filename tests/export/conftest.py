"""Exports that several tests look at, each made once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.export_fixtures import Exported
from helpers.lora_subject import Subject
from rainfusion_trt.export import export_model
from rainfusion_trt.models import get_model


@pytest.fixture(scope="session")
def exported(tmp_path_factory) -> Callable[..., Exported]:
    """(name, dtype, dynamic, layers) -> a tiny random model and its file."""
    made: dict[tuple, Exported] = {}
    folder = tmp_path_factory.mktemp("onnx")

    def export(
        name: str, dtype: torch.dtype = torch.float32, *, dynamic: bool = False, layers: int = 2
    ) -> Exported:
        key = (name, dtype, dynamic, layers)
        if key not in made:
            model = get_model(name)
            config = model.config("tiny", layers=layers)
            transformer = model.create(config, dtype=dtype, seed=3)
            report = export_model(
                model,
                transformer,
                model.tiny_size,
                output=folder / f"{len(made)}.onnx",
                dynamic=dynamic,
                component=model.components[0],
            )
            made[key] = Exported(model, transformer, report)
        return made[key]

    return export


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def subject(tmp_path) -> Callable[[str], Subject]:
    """Name of a model -> a tiny transformer of it and a LoRA file in the making."""
    return lambda name: Subject(name, tmp_path)
