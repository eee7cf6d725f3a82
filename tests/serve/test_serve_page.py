"""The page: what it does, and that it takes nothing from the interface below it."""

from __future__ import annotations

import importlib.util
import os

import pytest
from PIL import Image

from helpers.serve_running import make_running
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.page import Page, _layout

NOTHING = {"preset": "usual", "sparsity": "", "steps": "", "seed": ""}


def make(page: Page, prompt: str, *, beside: bool = False, **given) -> list[str]:
    pictures = (given.pop("image", None), given.pop("last_image", None))
    return page.make(prompt, *{**NOTHING, **given}.values(), beside, *pictures)


def gradio_or_skip():
    if importlib.util.find_spec("gradio") is None:
        assert not os.environ.get("CI"), "pip install '.[page]'"
        pytest.skip("Gradio is not installed: pip install '.[page]'")
    import gradio

    return gradio


def test_a_video_is_made_and_shown(running, tmp_path):
    page = Page(running.service)
    image = tmp_path / "x.png"
    Image.new("RGB", (8, 8)).save(image)
    ids = make(
        page, "<b>a panda</b>", steps="3", seed=" 4", image=str(image), last_image=str(image)
    )
    said, shown, queue = page.look(ids)
    assert "queued, 0 %" in said and shown == ""
    cells = (ids[0], "queued", "0", "&lt;b&gt;a panda&lt;/b&gt;")
    assert "".join(f"<td>{text}</td>" for text in cells) in queue
    assert running.drain() == ids
    said, shown, _ = page.look(ids)
    assert "completed, 100 %" in said and f'src="/v1/videos/{ids[0]}/content"' in shown
    assert "panda" not in said + shown  # which are shown as Markdown and HTML
    job = running.service.get(ids[0])
    assert (job.request.steps, job.request.seed, job.media) == (3, 4, ("image", "last_image"))


def test_dense_beside_sparse_has_the_same_noise(running):
    ids = make(Page(running.service), "a", preset="fast", beside=True)
    sparse, dense = (running.service.get(job_id).request for job_id in ids)
    assert (sparse.preset, dense.preset, dense.sparsity) == ("fast", None, 0.0)
    assert sparse.seed == dense.seed


def test_cancelling_and_what_is_gone(running):
    page = Page(running.service)
    ids = make(page, "a")
    page.cancel([*ids, "video_" + "0" * 32])
    said, _, _ = page.look(ids)
    assert "failed, 0 %, `cancelled`" in said
    running.service.remove(ids[0])
    said, shown, queue = page.look(ids)
    assert (said, shown) == ("", "") and ids[0] not in queue


def test_refusals_are_told(running):
    with pytest.raises(ServiceError, match="prompt is empty"):
        make(Page(running.service), " ")


def test_images_of_the_page_are_looked_at_as_any_other(tmp_path, monkeypatch):
    """Gradio takes what Pillow knows and decodes it; here the file itself is looked at."""
    gradio = gradio_or_skip()
    running = make_running(tmp_path, limits={"image_pixels": 100})
    page = Page(running.service)
    blocks = _layout(gradio, page, running.service)
    image, _ = (found for found in blocks.blocks.values() if isinstance(found, gradio.Image))
    bad = (("a.gif", (8, 8), "is no PNG"), ("a.png", (20, 20), "pixels"))
    for name, size, _ in bad:
        Image.new("L", size).save(tmp_path / name)
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    for name, _, words in bad:
        file = tmp_path / name
        given = image.preprocess(gradio.data_classes.ImageData(path=str(file), orig_name=name))
        with pytest.raises(ServiceError, match=words):
            make(page, "a", image=given)


def test_the_page_swallows_nothing(tmp_path):
    gradio_or_skip()
    running = make_running(tmp_path, page=True)
    page = running.client.get("/")
    assert page.status_code == 200 and "text/html" in page.headers["content-type"]
    assert "fonts.googleapis.com" not in page.text
    assert running.client.get("/health").json()["status"] == "ok"
    assert "rainfusion_jobs" in running.client.get("/metrics").text
    made = running.post(prompt="a")
    running.drain()
    assert running.state(made["id"])["status"] == "completed"
    for path in ("/v1/other", "/v1/videos/none", "/v1/videos/a/b/c"):
        answer = running.client.get(path)
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "not_found"
    for method, path in (("PUT", "/v1/videos"), ("POST", "/health"), ("OPTIONS", "/metrics")):
        answer = running.client.request(method, path)
        assert answer.status_code == 405 and "GET" in answer.headers["allow"]
        assert answer.json()["error"]["code"] == "method_not_allowed"
    assert set(running.client.get("/openapi.json").json()["paths"]) == {
        *("/v1/videos", "/v1/videos/{video_id}", "/v1/videos/{video_id}/content"),
        *("/health", "/metrics"),
    }
