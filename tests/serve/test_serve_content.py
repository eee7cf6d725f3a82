"""Files of the service: whole or not there; and images of strangers."""

from __future__ import annotations

import errno
import io
import shutil

import fsspec
import pytest
from PIL import Image

from helpers.serve_running import make_running
from helpers.serve_workers import journal_lines
from rainfusion_trt.errors import InvalidInputError
from rainfusion_trt.serve import content as content_module
from rainfusion_trt.serve.content import open_content
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.image import clean_image


@pytest.fixture(params=["folder", "memory", "file"])
def content(request, tmp_path):
    places = {"folder": str(tmp_path / "c"), "memory": "memory://videos"}
    (tmp_path / "c").mkdir()
    return open_content(places.get(request.param, f"file://{tmp_path / 'c'}"))


def test_files_come_back_and_go(content, tmp_path):
    source = tmp_path / "made.mp4"
    source.write_bytes(b"x" * 3_000_000)
    assert content.put("video_1.1.mp4", source) == 3_000_000
    assert b"".join(content.read("video_1.1.mp4")) == source.read_bytes()
    content.delete("video_1.1.mp4")
    content.delete("video_1.1.mp4")
    with pytest.raises(FileNotFoundError):
        content.read("video_1.1.mp4")


def test_a_full_disk_leaves_nothing_behind(content, tmp_path, monkeypatch):
    source = tmp_path / "made.mp4"
    source.write_bytes(b"x" * 100)

    def full(given, kept, size):
        kept.write(given.read(50))
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(content_module.shutil, "copyfileobj", full)
    with pytest.raises(OSError, match="No space"):
        content.put("video_2.1.mp4", source)
    with pytest.raises(FileNotFoundError):
        content.read("video_2.1.mp4")
    assert list((tmp_path / "c").iterdir()) == []
    assert fsspec.filesystem("memory").find("videos") == []


def test_unknown_urls_are_one_line():
    with pytest.raises(InvalidInputError, match="nosuch://x cannot be used"):
        open_content("nosuch://x")


def test_a_disk_that_is_full_fails_the_job_and_not_the_service(tmp_path, monkeypatch):
    running = make_running(tmp_path)
    made = running.post(prompt="first")
    with monkeypatch.context() as patch:
        patch.setattr(
            content_module.shutil,
            "copyfileobj",
            lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device")),
        )
        running.drain()
        state = running.state(made["id"])
        assert (state["status"], state["error"]["code"]) == ("failed", "storage_full")
        file = io.BytesIO()
        Image.new("RGB", (8, 8)).save(file, "PNG")
        files = {"prompt": (None, "a"), "input_reference": ("x", file.getvalue(), "image/png")}
        answer = running.client.post("/v1/videos", files=files)
        assert answer.status_code == 507 and answer.json()["error"]["code"] == "storage_full"
    again = running.post(prompt="second")
    running.drain()
    assert running.state(again["id"])["status"] == "completed"
    assert journal_lines(running.journal, "made") == ["first", "second"]


def test_videos_of_a_url_are_streamed(tmp_path):
    running = make_running(tmp_path, content="memory://streamed")
    made = running.post()
    running.drain()
    answer = running.client.get(f"/v1/videos/{made['id']}/content")
    assert answer.status_code == 200 and len(answer.content) == int(
        answer.headers["content-length"]
    )
    assert answer.content == running.worker._video


def picture(size=(6, 4), kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    image = Image.new("RGB", size, (0, 0, 0))
    image.putpixel((0, 0), (255, 0, 0))
    image.save(file, kind, **options)
    return file.getvalue()


def test_images_become_plain_ones():
    exif = Image.Exif()
    exif[0x0112] = 6  # on its side: turned by 90 degrees
    exif[0x010E] = "a secret of the camera"
    turned = clean_image(picture(exif=exif), most_pixels=100)
    assert b"secret" not in turned
    with Image.open(io.BytesIO(turned)) as image:
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (4, 6))
        assert image.getpixel((3, 0)) == (255, 0, 0)
    for kind in ("JPEG", "WEBP"):
        with Image.open(io.BytesIO(clean_image(picture(kind=kind), most_pixels=100))) as image:
            assert (image.format, image.size) == ("PNG", (6, 4))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "damaged"),
        (b"GIF89a" + bytes(100), "damaged"),
        (picture(kind="GIF"), "damaged"),
        (picture(kind="TIFF"), "damaged"),
        (picture()[:45], "damaged"),
        (picture((40, 40)), "40x40 pixels, more than 100"),
        (picture((20000, 10000), kind="PNG"), "pixels"),
    ],
)
def test_bad_images_are_refused(data, words):
    with pytest.raises(ServiceError, match=words):
        clean_image(data, most_pixels=100)


def test_a_bomb_is_refused_before_it_is_decoded(monkeypatch):
    bomb = picture((3000, 3000))
    monkeypatch.setattr(Image.Image, "convert", lambda *_: pytest.fail("it was decoded"))
    with pytest.raises(ServiceError, match="more than 1000000"):
        clean_image(bomb, most_pixels=1_000_000)


def test_content_folder_is_of_this_machine(tmp_path):
    folder = open_content(str(tmp_path / "new"))
    assert folder.path("a") == tmp_path / "new" / "a"
    shutil.rmtree(tmp_path / "new")
