"""Sparse attention of a worker's settings: what requests get that do not say otherwise.

The names are those of `rainfusion_trt.runtime.option_groups.Attention`: an option that ``run`` gets
is one of the service too.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.operator.settings import AttentionSettings
from rainfusion_trt.presets import Preset, preset_of
from rainfusion_trt.runtime.option_groups import Attention
from rainfusion_trt.runtime.schedule import Schedule, choose_schedule

NAMES = tuple(Attention().arguments)
"""Options of a worker that are about sparse attention."""

_OF_STEPS = ("preset", "sparsity", "dense_fraction")  # of each call, as requests may say others
_SETTINGS = {field.name for field in fields(AttentionSettings)}


class UsualAttention:
    """The options of a worker that are among `NAMES`.

    Parameters
    ----------
    **given
        As for `Pipeline`; None is not given.

    Raises
    ------
    RainFusionError
        An option that there is not, or a value that nothing could be made with.
    """

    def __init__(self, **given: Any) -> None:
        unknown = [name for name in given if name not in NAMES]
        if unknown:
            raise InvalidInputError(
                f"{unknown[0]!r} is no option of a worker: leave it out, or see docs/serving.md"
            )
        self._given = {name: value for name, value in given.items() if value is not None}
        self.preset: str | None = given.get("preset")
        self.method: str | None = given.get("method")
        preset = preset_of(self.preset)
        choose_schedule(preset, *self._steps(), None)
        self.settings = self._checked(preset)

    @property
    def of_pipeline(self) -> dict[str, Any]:
        """Arguments of `Pipeline` that are the same in all calls; not the method."""
        left_out = ("method", *_OF_STEPS)
        return {name: value for name, value in self._given.items() if name not in left_out}

    def schedule(self, preset: Preset | None, sparsity: float | None, *, named: bool) -> Schedule:
        """Sparsity of the steps of a request.

        Parameters
        ----------
        preset, sparsity
            Its own, or the usual preset.
        named
            Whether the request names the preset, which then goes before what is usual.
        """
        usual, fraction = (None, None) if named else self._steps()
        return choose_schedule(preset, usual if sparsity is None else sparsity, fraction, None)

    def dense_layers(self, preset: Preset | None) -> tuple[int, ...]:
        """Those that stay dense: the given ones, else the preset's."""
        given = self._given.get("dense_layers")
        if given is None:
            return preset.dense_layers if preset else ()
        return tuple(given)

    def check_sparse(self, backend: str) -> None:
        """Refuse what a backend of dense attention alone would make nothing of.

        Raises
        ------
        InvalidInputError
            The message names it.
        """
        for name in (*_OF_STEPS, "dense_layers"):
            if self._given.get(name):
                raise InvalidInputError(
                    f"{name}={self._given[name]!r} was asked for, and attention is dense on "
                    f"{backend}: leave it out, or serve an engine"
                )

    def _steps(self) -> tuple[float | None, float | None]:
        return self._given.get("sparsity"), self._given.get("dense_fraction")

    def _checked(self, preset: Preset | None) -> dict[str, Any]:
        """The attributes of the operator that the options say, as it keeps them."""
        given: dict[str, Any] = {} if preset is None else {"method": preset.method}
        given |= {name: value for name, value in self._given.items() if name in _SETTINGS}
        checked = AttentionSettings(**given)
        return {name: getattr(checked, name) for name in given}
