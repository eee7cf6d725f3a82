"""What requests get that do not say otherwise, where a worker's options name it."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.field_errors import explain_fields

Count = Annotated[int, Field(ge=1)]


class _Defaults(BaseModel):
    model_config = ConfigDict(extra="forbid")

    width: Count | None = None
    height: Count | None = None
    frames: Count | None = None
    fps: Count | None = None
    steps: Count | None = None
    guidance: FiniteFloat | None = None


def read_defaults(given: Any) -> dict[str, Any]:
    """The option ``defaults`` of a worker, a mapping; none of it has to be there.

    Raises
    ------
    InvalidInputError
        Another name, or a value that no request could have.
    """
    if given is None:
        return {}
    try:
        read = _Defaults.model_validate(given)
    except ValidationError as error:
        reason = explain_fields(
            error, prefix="defaults.", whole="defaults", known=_Defaults.model_fields
        )
        raise InvalidInputError(f"options of a worker: {reason}") from error
    values = read.model_dump(exclude_unset=True)
    # Without a value they are the model's, but for guidance: that the model takes none.
    return {n: v for n, v in values.items() if v is not None or n == "guidance"}
