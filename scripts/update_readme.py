"""The former name of update_docs.py."""

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("update_docs.py")), run_name="__main__")
