"""Which of two transformers that take turns a file is of, as far as its names say it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from rainfusion_trt.errors import InvalidInputError

# Their weights have the same names and shapes, so that nothing else tells them apart.
_NAME = re.compile(r"(high|low)[-_. ]?noise")

# What stands before the names of tensors where a file holds both, as diffusers, musubi and others
# call the two.
_PREFIX = re.compile(
    r"(?:lora_unet_|lora_transformer_|lycoris_|diffusion_model\.|pipe\.)?"
    r"(transformer_2|dit2|(?:high|low)_noise(?:_model)?)[._]"
)


def expert_prefix(name: str) -> str | None:
    """The transformer that the name of a tensor says it is of, with all that stands before it."""
    found = _PREFIX.match(name)
    return found[0] if found else None


def check_expert(path: Path, components: Sequence[str], component: str | None) -> None:
    """Refuse a file that by its name is of the other transformer.

    Parameters
    ----------
    path
        Of weights or of a LoRA. Its name counts, else that of its folder.
    components
        The transformers of the model, that for the noisy steps first.
    component
        The one that it is given for.

    Raises
    ------
    InvalidInputError
        The message names both.
    """
    if len(components) != 2 or component is None:
        return
    for name in (path.name, path.absolute().parent.name):
        said = set(_NAME.findall(name.lower()))
        if len(said) == 1:
            meant = components[0] if said == {"high"} else components[1]
            if meant != component:
                raise InvalidInputError(
                    f"{path} is for the steps of {said.pop()} noise by its name, which {meant} "
                    f"does, and it was given for {component}: pass --component {meant}, or rename "
                    "it if its name is wrong"
                )
            return
