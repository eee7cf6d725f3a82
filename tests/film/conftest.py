"""The benchmark is not installed: its tests import it from the checkout."""

import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
if not all(find_spec(name) for name in ("cv2", "diffusers", "safetensors")):
    collect_ignore_glob = ["test_*.py"]
