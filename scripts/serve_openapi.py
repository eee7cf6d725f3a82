"""Writes docs/serving/openapi.json, the contract of the HTTP interface; a test holds it true."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from rainfusion_trt.serve.api import make_api
from rainfusion_trt.serve.content import open_content
from rainfusion_trt.serve.service import VideoService
from rainfusion_trt.serve.settings import ServeSettings
from rainfusion_trt.serve.store import Store

_FILE = Path(__file__).resolve().parents[1] / "docs" / "serving" / "openapi.json"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = ServeSettings.in_folder(Path(folder))
        store = Store(settings.database, lease_s=settings.lease_s, attempts=settings.attempts)
        service = VideoService(store, open_content(settings.content), "none", settings.limits)
        _FILE.write_text(json.dumps(make_api(service).openapi(), indent=1) + "\n")
        store.close()


if __name__ == "__main__":
    main()
