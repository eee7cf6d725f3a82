"""The page as people have it: in Chromium, on a server and a worker that run beside the test."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from helpers import serve_browser
from helpers.serve_browser import DENSE, FPS, SPARSE
from helpers.serve_running import make_running
from helpers.serve_workers import wait_for
from rainfusion_trt.serve.errors import ServiceError

HOSTILE = "<img src=x onerror=alert(1)> a panda"
IN_STEP = f"""() => {{
  const [lower, upper] = document.querySelectorAll("video");
  return Math.abs(lower.currentTime - upper.currentTime) < {1 / FPS}
    && lower.paused === upper.paused;
}}"""


@dataclass
class Site:
    """The running service and a browser."""

    url: str
    running: Any
    worker: Any
    browser: Any
    faults: list[str] = field(default_factory=list)

    def open(self, path: str = "/") -> Any:
        """A new tab, which notes what must not happen."""
        tab = self.browser.new_page()
        tab.on("request", self._asked)
        tab.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (self.faults.append(dialog.message), dialog.dismiss()))
        tab.on("console", self._said)
        self.answer = tab.goto(self.url + path)
        return tab

    def _asked(self, request: Any) -> None:
        parts = urlsplit(request.url)
        if parts.scheme not in ("data", "blob") and parts.hostname != "127.0.0.1":
            self.faults.append(f"asked for {request.url}")

    def _said(self, message: Any) -> None:
        if message.type == "error":
            self.faults.append(f"console: {message.text}")


@pytest.fixture(scope="module")
def shared_site(tmp_path_factory) -> Iterator[Site]:
    serve_browser.required()
    folder = tmp_path_factory.mktemp("browser")
    worker = serve_browser.ShadeWorker(folder)
    running = make_running(folder, page=True, worker=worker)
    with (
        serve_browser.served(running.client.app) as url,
        serve_browser.working(running),
        serve_browser.chromium(folder / "profile") as browser,
    ):
        yield Site(url, running, worker, browser)
        worker.go.set()
    running.service.store.close()


@pytest.fixture
def site(shared_site) -> Iterator[Site]:
    """Afterwards the page has asked nobody else for anything, and nothing has gone wrong in it."""
    shared_site.worker.go.clear()
    shared_site.faults.clear()
    yield shared_site
    for tab in shared_site.browser.pages[1:]:
        tab.close()
    shared_site.worker.go.set()
    counts = shared_site.running.service.counts
    wait_for(lambda: counts().queued + counts().in_progress == 0)
    assert shared_site.faults == []


def ask(tab: Any, prompt: str, *, beside: bool = False, **fields: str) -> None:
    tab.get_by_label("Prompt").fill(prompt)
    for label, text in fields.items():
        tab.get_by_label(label.title()).fill(text)
    if beside:
        tab.get_by_label("Dense attention beside it").check()
    tab.get_by_role("button", name="Make", exact=True).click()


def shades(tab: Any) -> tuple[int, int]:
    """What is seen near the left and near the right edge of the videos."""
    shot = Image.open(io.BytesIO(tab.locator(".wipe-films").screenshot())).convert("L")
    middle = shot.height // 2
    left, right = (shot.getpixel((int(shot.width * at), middle)) for at in (0.1, 0.9))
    return left, right


def test_from_a_prompt_to_two_videos(site):
    tab = site.open()
    tab.get_by_label("Preset").click()
    tab.get_by_role("option", name="fast").click()
    ask(tab, HOSTILE, beside=True, steps="4", seed="7")
    tab.get_by_text("in_progress, 25 %").wait_for()
    tab.get_by_text("queued, 0 %").wait_for()
    row = tab.locator("tr", has_text=HOSTILE)
    row.filter(has_text="in_progress").first.wait_for()
    assert tab.locator("video").count() == 0
    site.worker.go.set()
    row.filter(has_text="completed").nth(1).wait_for()
    tab.locator("video").nth(1).wait_for()
    for video in tab.locator("video").all():
        answer = tab.request.get(site.url + video.get_attribute("src"))
        assert (answer.status, answer.headers["content-type"]) == (200, "video/mp4")
    assert tab.locator("img").count() == 0
    newest, _ = site.running.service.list(after=None, limit=2, newest_first=True)
    dense, sparse = (job.request for job in newest)
    assert (sparse.prompt, sparse.preset, sparse.sparsity) == (HOSTILE, "fast", None)
    assert (dense.prompt, dense.preset, dense.sparsity) == (HOSTILE, None, 0.0)
    assert (sparse.seed, dense.seed, sparse.steps, dense.steps) == (7, 7, 4, 4)


def test_one_slider_wipes_between_videos_that_play_in_step(site):
    site.worker.go.set()
    tab = site.open()
    ask(tab, "a", beside=True)
    tab.wait_for_function("document.querySelectorAll('video')[1]?.currentTime > 1")
    tab.wait_for_function("document.querySelectorAll('video')[1].currentTime < 0.5")  # again
    tab.wait_for_function(IN_STEP)
    # One that has run away is brought back.
    tab.evaluate("document.querySelector('video').currentTime += 1")
    tab.wait_for_function(IN_STEP)
    tab.get_by_role("button", name="Pause").click()
    tab.get_by_role("button", name="Play").wait_for()
    tab.wait_for_function(IN_STEP)
    tab.evaluate("document.querySelectorAll('video')[1].currentTime = 0.5")
    tab.wait_for_function("document.querySelector('video').currentTime === 0.5")
    slider = tab.get_by_role("slider")
    assert slider.count() == 1
    for at, seen in (("50", (SPARSE, DENSE)), ("5", (DENSE, DENSE)), ("95", (SPARSE, SPARSE))):
        slider.fill(at)
        assert shades(tab) == pytest.approx(seen, abs=8)  # limited range, and loss of the codec
    # The page looks at the jobs every second, and leaves slider and videos as they are.
    tab.wait_for_timeout(1500)
    assert slider.input_value() == "95" and shades(tab) == pytest.approx((SPARSE, SPARSE), abs=8)
    tab.get_by_role("button", name="Play").click()
    tab.wait_for_function("[...document.querySelectorAll('video')].every((v) => !v.paused)")


def test_what_is_left_empty_is_the_servers_choice(site):
    site.worker.go.set()
    tab = site.open()
    ask(tab, "left empty")
    tab.get_by_text("completed, 100 %").wait_for()
    (job,), _ = site.running.service.list(after=None, limit=1, newest_first=True)
    usual = site.worker.describe()
    assert (job.request.preset, job.request.sparsity) == (None, None)
    assert job.request.steps == usual.steps
    assert tab.locator("video").count() == 1 and tab.get_by_role("slider").count() == 0


def test_what_waits_can_be_cancelled(site):
    first = site.running.post(prompt="before it")["id"]
    wait_for(lambda: site.running.state(first)["status"] == "in_progress")
    tab = site.open()
    ask(tab, "not wanted")
    tab.get_by_text("queued, 0 %").wait_for()
    tab.get_by_role("button", name="Cancel").click()
    tab.get_by_text("failed, 0 %, cancelled").wait_for()
    tab.locator("tr", has_text="not wanted").filter(has_text="failed").first.wait_for()
    assert site.running.state(first)["status"] == "in_progress"


def refuse(message: str) -> None:
    raise ServiceError(message)


def test_refusals_are_shown_as_text(site, monkeypatch):
    tab = site.open()
    ask(tab, "")
    tab.get_by_text("prompt is empty: say what the video shows").wait_for()
    ask(tab, "a", seed="-1")
    tab.get_by_text("seed='-1' must be 0 or more").wait_for()
    hostile = f"'no' & {HOSTILE}"
    monkeypatch.setattr(site.running.service, "submit", lambda *_: refuse(hostile))
    ask(tab, "a", seed="")
    tab.get_by_text(hostile, exact=True).wait_for()
    assert tab.locator("img").count() == 0
    assert tab.locator("video").count() == 0


def test_the_interface_below_it_answers_the_same_browser(site):
    made = site.running.post(prompt=HOSTILE)["id"]
    tab = site.open("/v1/videos")
    assert site.answer.status == 200
    assert site.answer.headers["content-type"] == "application/json"
    assert json.loads(tab.inner_text("body"))["data"][0]["id"] == made
    tab = site.open("/health")
    assert json.loads(tab.inner_text("body"))["status"] == "ok"
