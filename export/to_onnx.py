#!/usr/bin/env python
"""``rainfusion-trt export`` from a checkout: ``python export/to_onnx.py --help``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from rainfusion_trt.export.cli import app  # noqa: E402

if __name__ == "__main__":
    app()
