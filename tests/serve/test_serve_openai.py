"""OpenAI's own client against the service."""

from __future__ import annotations

import asyncio
import base64
import io
import warnings

import httpx2
import openai
import pytest
from PIL import Image

from helpers.serve_running import make_running

warnings.filterwarnings("ignore", "The Sora API", DeprecationWarning)
pytestmark = pytest.mark.filterwarnings("ignore:The Sora API")


def client_of(running, key: str = "none") -> openai.AsyncOpenAI:
    transport = httpx2.ASGITransport(app=running.client.app)
    return openai.AsyncOpenAI(
        api_key=key,
        base_url="http://service/v1",
        max_retries=0,
        http_client=httpx2.AsyncClient(transport=transport, base_url="http://service/v1"),
    )


def test_the_videos_of_openai(tmp_path):
    running = make_running(tmp_path, token="secret")

    async def use() -> None:
        videos = client_of(running, "secret").videos
        first = await videos.create(prompt="a panda", size="32x16", seconds="1")
        assert (first.status, first.size, first.seconds, first.object) == (
            *("queued", "32x16", "1.125"),
            "video",
        )
        extra = {"preset": "fast", "steps": 3, "seed": 5}
        second = await videos.create(prompt="b", model="noop", extra_body=extra)
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        image = ("x.png", file.getvalue(), "image/png")
        third = await videos.create(prompt="c", input_reference=image)
        assert running.service.get(third.id).media == ("image",)
        url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
        last = {"last_image": {"image_url": url}}
        both = await videos.create(prompt="c", input_reference=image, extra_body=last)
        assert running.service.get(both.id).media == ("image", "last_image")
        assert not (await videos.delete(both.id)).deleted  # cancelled
        assert (await videos.delete(both.id)).deleted
        with pytest.raises(openai.BadRequestError, match="damaged"):
            await videos.create(prompt="c", input_reference=("x.png", b"no image", "image/png"))
        await asyncio.to_thread(running.drain)
        done = await videos.poll(second.id, poll_interval_ms=10)
        assert (done.status, done.progress, done.ran["seed"]) == ("completed", 100, 5)
        content = await videos.download_content(done.id)
        assert content.content == running.worker._video
        page = await videos.list(limit=2)
        assert [video.id for video in page.data] == [third.id, second.id]
        assert [video.id async for video in videos.list(limit=2)] == [
            *(third.id, second.id),
            first.id,
        ]
        gone = await videos.delete(first.id)
        assert gone.deleted and gone.object == "video.deleted"
        with pytest.raises(openai.NotFoundError) as caught:
            await videos.retrieve(first.id)
        assert caught.value.code == "not_found"
        waiting = await videos.create(prompt="d")
        assert not (await videos.delete(waiting.id)).deleted
        cancelled = await videos.retrieve(waiting.id)
        assert cancelled.status == "failed" and cancelled.error.code == "cancelled"
        with pytest.raises(openai.NotFoundError, match="not served here"):
            await videos.create(prompt="a", model="sora-2")
        with pytest.raises(openai.AuthenticationError):
            await client_of(running, "wrong").videos.list()

    asyncio.run(use())


def test_a_full_queue_is_its_rate_limit(tmp_path):
    running = make_running(tmp_path, limits={"queued": 1}, hosts=("service",))

    async def use() -> None:
        videos = client_of(running).videos
        await videos.create(prompt="a")
        with pytest.raises(openai.RateLimitError) as caught:
            await videos.create(prompt="a")
        assert int(caught.value.response.headers["retry-after"]) > 0

    asyncio.run(use())
