#!/usr/bin/env python
"""From a diffusers video transformer to an ONNX file: ``python export/to_onnx.py --help``."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1]))  # a checkout that is not installed

from rainfusion_export.cli import app  # noqa: E402

if __name__ == "__main__":
    app()
