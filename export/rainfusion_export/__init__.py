"""The exporter's name in 0.1; it is ``rainfusion_trt.export`` now."""

import warnings

from rainfusion_trt.export import *  # noqa: F403
from rainfusion_trt.export import __all__  # noqa: F401

warnings.warn(
    "rainfusion_export has moved: import rainfusion_trt.export instead", FutureWarning, stacklevel=2
)
