"""The HTTP door in this process, with a worker that computes nothing."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import re
from pathlib import Path

import av
import pytest
from PIL import Image
from sqlalchemy.exc import OperationalError

from helpers.serve_running import make_running
from helpers.serve_workers import described, journal_lines, wait_for
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.request import VideoRequest, plan
from rainfusion_trt.serve.settings import Limits

ROOT = Path(__file__).resolve().parents[2]


def error_of(answer):
    """The error of an answer, whose form is checked."""
    body = answer.json()
    assert set(body) == {"error"} and set(body["error"]) == {"message", "type", "code", "param"}
    assert "\n" not in body["error"]["message"]
    return body["error"]


def png(size=(8, 8), kind="PNG", **options) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (200, 10, 10)).save(file, kind, **options)
    return file.getvalue()


def test_a_job_from_its_request_to_its_file(running):
    made = running.post(prompt="a panda", seed=7, steps=3)
    assert made["status"] == "queued" and made["progress"] == 0 and made["ran"] is None
    assert running.client.get(f"/v1/videos/{made['id']}/content").status_code == 409
    assert running.drain() == [made["id"]]
    done = running.state(made["id"])
    assert (done["status"], done["progress"], done["error"]) == ("completed", 100, None)
    assert done["size"] == "16x16" and done["seconds"] == "0.625" and done["model"] == "noop"
    assert [step["step"] for step in done["ran"]["steps"]] == [0, 1, 2]
    assert done["ran"]["seed"] == 7 and done["ran"]["guidance"] is None  # what ran, not was asked
    answer = running.client.get(f"/v1/videos/{made['id']}/content")
    assert answer.headers["content-type"] == "video/mp4"
    with av.open(io.BytesIO(answer.content)) as video:
        assert sum(1 for _ in video.decode(video=0)) == 5
    part = running.client.get(f"/v1/videos/{made['id']}/content", headers={"Range": "bytes=0-9"})
    assert part.status_code == 206 and part.content == answer.content[:10]


def test_bad_ranges_are_errors_in_the_same_form(running):
    made = running.post()
    running.drain()
    place = f"/v1/videos/{made['id']}/content"
    size = len(running.client.get(place).content)
    for header, status, code in (
        ("bytes=x-y", 400, "invalid_range"),
        ("pages=1-2", 400, "invalid_range"),
        ("bytes=5-2", 400, "invalid_range"),
        (f"bytes={size}-", 416, "range_not_satisfiable"),
    ):
        answer = running.client.get(place, headers={"Range": header})
        assert (answer.status_code, error_of(answer)["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/json"
        told = answer.headers.get("content-range")
        assert told == (f"bytes */{size}" if status == 416 else None)
    several = running.client.get(place, headers={"Range": "bytes=0-1,4-5"})
    assert several.status_code == 206


def test_jobs_run_in_the_order_they_came(running):
    ids = [running.post(prompt=f"p{i}")["id"] for i in range(5)]
    assert running.drain() == ids


def test_a_worker_with_a_fault_leaves_the_queue_to_others(running):
    """Ray takes some seconds to replace it, in which it would fail every job at once."""
    broken, next_ = running.post(prompt="break"), running.post(prompt="next")
    assert running.drain() == [broken["id"]]
    assert running.state(broken["id"])["status"] == "failed"
    assert running.state(next_["id"])["status"] == "queued"


def test_a_generation_that_hangs_loses_its_job_and_its_worker(tmp_path):
    """Its process lives, so that its lease would be renewed for ever."""
    running = make_running(tmp_path, lease_s=0.5, step_limit_s=0.3)
    made = running.post(prompt="hang")
    thread = running.in_background()
    wait_for(running.runner.fault)
    assert running.runner.fault() == "the worker hangs: it made no step for 0.3 s (step_limit_s)"
    wait_for(running.service.store.sweep, seconds=5)
    assert running.state(made["id"])["status"] == "queued"
    assert running.drain() == []  # another worker's
    running.worker.go.set()
    thread.join(10)
    assert running.state(made["id"])["status"] == "queued"  # it came too late


def test_a_slow_generation_keeps_its_job(tmp_path):
    running = make_running(tmp_path, lease_s=0.5, step_limit_s=1.0, step_seconds=0.3)
    made = running.post(steps=5)
    running.drain()
    assert running.state(made["id"])["status"] == "completed" and running.runner.fault() is None


def test_a_completed_job_whose_answer_was_lost_keeps_its_video(running, monkeypatch):
    """The database commits and its connection breaks: the same change is tried again."""
    complete, tries = running.service.store.complete, []

    def interrupted(*given, **values):
        tries.append(complete(*given, **values))
        if len(tries) == 1:
            raise OperationalError("COMMIT", {}, Exception("the connection is lost"))
        return tries[-1]

    monkeypatch.setattr(running.runner._store, "complete", interrupted)
    made = running.post()
    running.drain()
    assert tries == [True, False] and running.state(made["id"])["status"] == "completed"
    video = running.client.get(f"/v1/videos/{made['id']}/content")
    assert video.status_code == 200 and "no-store" in video.headers["cache-control"]


def test_a_job_whose_submission_lost_its_answer_keeps_its_image(running, monkeypatch):
    """The row is there: without its image the job would fail, as a bug of ours."""
    submit = running.service.store.submit

    def interrupted(*given, **values):
        submit(*given, **values)
        raise OperationalError("COMMIT", {}, Exception("the connection is lost"))

    monkeypatch.setattr(running.service.store, "submit", interrupted)
    image = io.BytesIO()
    Image.new("RGB", (8, 8)).save(image, "PNG")
    answer = running.client.post(
        "/v1/videos", data={"prompt": "a"}, files={"input_reference": ("a.png", image.getvalue())}
    )
    assert answer.status_code == 503
    (job_id,) = running.drain()
    assert running.state(job_id)["status"] == "completed"


def test_a_database_that_is_away_for_long_fails_no_job(tmp_path, monkeypatch):
    """It comes back later than a video waits for it: the job is the next sweep's."""
    running = make_running(tmp_path, lease_s=0.5)
    made = running.post()

    def away(*_, **__):
        raise OperationalError("COMMIT", {}, Exception("the connection is lost"))

    with monkeypatch.context() as patch:
        patch.setattr(running.runner._store, "complete", away)
        with pytest.raises(OperationalError):
            running.runner.run_next()
    assert running.state(made["id"])["status"] == "in_progress"
    wait_for(running.service.store.sweep, seconds=5)
    assert running.drain() == [made["id"]]
    assert running.state(made["id"])["status"] == "completed"


def test_lists_have_pages(running):
    ids = [running.post()["id"] for _ in range(5)]
    first = running.client.get("/v1/videos", params={"limit": 2}).json()
    assert [video["id"] for video in first["data"]] == ids[:2:-1]
    assert first["has_more"] and first["last_id"] == ids[3]
    rest = running.client.get("/v1/videos", params={"limit": 9, "after": ids[3]}).json()
    assert [video["id"] for video in rest["data"]] == ids[2::-1] and not rest["has_more"]
    oldest = running.client.get("/v1/videos", params={"order": "asc", "limit": 1}).json()
    assert oldest["first_id"] == ids[0]


def test_a_waiting_job_is_cancelled_before_it_starts(running):
    made = running.post(prompt="never")
    gone = running.client.delete(f"/v1/videos/{made['id']}").json()
    assert gone == {"id": made["id"], "object": "video.deleted", "deleted": False}
    assert running.drain() == []
    state = running.state(made["id"])
    assert state["status"] == "failed" and state["error"]["code"] == "cancelled"
    assert journal_lines(running.journal, "began") == []
    assert running.client.delete(f"/v1/videos/{made['id']}").json()["deleted"]
    assert running.client.get(f"/v1/videos/{made['id']}").status_code == 404


def test_a_running_job_is_cancelled_between_steps(tmp_path):
    running = make_running(tmp_path, step_seconds=0.25)
    made = running.post(prompt="long", steps=100)
    thread = running.in_background()
    wait_for(lambda: running.state(made["id"])["progress"] >= 1)
    assert running.state(made["id"])["status"] == "in_progress"
    assert not running.client.delete(f"/v1/videos/{made['id']}").json()["deleted"]
    thread.join(10)
    state = running.state(made["id"])
    assert state["status"] == "failed" and state["error"]["code"] == "cancelled"
    assert journal_lines(running.journal, "made") == []
    after = running.post(prompt="next")  # the worker can be used again
    assert running.drain() == [after["id"]]


def test_deleting_removes_the_files(running):
    folder = running.service.content.path("x").parent
    files = {"prompt": (None, "with"), "input_reference": ("../../x.png", png(), "image/png")}
    made = running.client.post("/v1/videos", files=files).json()
    running.drain()
    assert sorted(p.name for p in folder.iterdir()) == [
        f"{made['id']}.1.mp4",
        f"{made['id']}.image.png",
    ]
    assert running.client.delete(f"/v1/videos/{made['id']}").json()["deleted"]
    assert list(folder.iterdir()) == []
    assert running.client.delete(f"/v1/videos/{made['id']}").status_code == 404


def test_the_queue_is_bounded(tmp_path):
    running = make_running(tmp_path, limits={"queued": 2})
    first = running.post(request_id="first")
    running.post()
    answer = running.client.post("/v1/videos", json={"prompt": "a"})
    assert answer.status_code == 429 and int(answer.headers["retry-after"]) > 0
    assert error_of(answer)["code"] == "queue_full"
    assert error_of(answer)["type"] == "rate_limit_error"
    assert running.post(request_id="first")["id"] == first["id"]  # known ones are answered
    running.drain()
    running.post()


def test_repeated_requests_give_the_same_job(running):
    first = running.post(prompt="once", request_id="k1")
    header = {"Idempotency-Key": "k1"}
    again = running.client.post("/v1/videos", json={"prompt": "once"}, headers=header).json()
    assert again["id"] == first["id"]
    running.drain()
    assert running.post(prompt="once", request_id="k1")["status"] == "completed"
    assert running.drain() == []
    other = running.client.post("/v1/videos", json={"prompt": "two", "request_id": "k1"})
    assert other.status_code == 409 and error_of(other)["code"] == "idempotency_conflict"
    both = running.client.post(
        "/v1/videos", json={"prompt": "once", "request_id": "k2"}, headers=header
    )
    assert both.status_code == 400
    assert journal_lines(running.journal, "made") == ["once"]
    running.service._deployment = "another"  # whose workers still load
    assert running.post(prompt="once", request_id="k1")["id"] == first["id"]


@pytest.mark.parametrize(
    ("prompt", "code", "words"),
    [
        ("refuse", "generation_failed", "prompt='refuse' is refused: say another"),
        ("bug", "internal_error", "the server's log says why"),
        ("memory", "out_of_memory", "smaller or shorter"),
        ("full", "storage_full", "no room left"),
    ],
)
def test_failures_are_told_in_one_line(running, prompt, code, words):
    made = running.post(prompt=prompt)
    running.drain()
    state = running.state(made["id"])
    assert state["status"] == "failed" and state["error"]["code"] == code
    assert words in state["error"]["message"] and "\n" not in state["error"]["message"]
    assert "secret" not in json.dumps(state)
    answer = running.client.get(f"/v1/videos/{made['id']}/content")
    assert answer.status_code == 404 and error_of(answer)["code"] == code


BAD = [
    ({}, "prompt", "prompt is missing: give it"),
    ({"prompt": ""}, "prompt", "empty"),
    ({"prompt": " \n"}, "prompt", "empty"),
    ({"prompt": "a\u0000b"}, "prompt", "control characters"),
    ({"prompt": "\ud800"}, "prompt", "half a character"),
    ({"prompt": "a", "\ud800": 1}, None, "half a character"),
    ({"prompt": "a", "\ud800": "\ud800"}, None, "half a character"),
    ({"prompt": "x" * 8001}, "prompt", "8001 characters"),
    ({"prompt": ["a"]}, "prompt", "prompt=['a'] must be a text"),
    ({"prompt": "a", "negative_prompt": "\x1b[2J"}, "negative_prompt", "control"),
    ({"prompt": "a", "model": "sora-2"}, "model", "not served here"),
    ({"prompt": "a", "size": "1280 x 720"}, "size", "WIDTHxHEIGHT"),
    ({"prompt": "a", "size": "0x16"}, "size", "WIDTHxHEIGHT"),
    ({"prompt": "a", "size": "999999x16"}, "size", "WIDTHxHEIGHT"),
    ({"prompt": "a", "size": "17x16"}, "size", "multiples of 16"),
    ({"prompt": "a", "size": "../../etc"}, "size", "WIDTHxHEIGHT"),
    ({"prompt": "a", "size": "16x16", "width": 16, "height": 16}, "size", "not both"),
    ({"prompt": "a", "width": 16}, "width", "both width and height"),
    ({"prompt": "a", "size": "99984x99984", "frames": 257}, "size", "pixels"),
    ({"prompt": "a", "frames": 6}, "frames", "4k + 1"),
    ({"prompt": "a", "frames": 0}, "frames", "frames=0 must be 1 or more"),
    ({"prompt": "a", "frames": 5, "seconds": 1}, "seconds", "not both"),
    ({"prompt": "a", "frames": 5, "num_frames": 9}, None, "are the same"),
    ({"prompt": "a", "seconds": -1}, "seconds", "seconds=-1 must be more than 0"),
    ({"prompt": "a", "seconds": 1e300}, "size", "pixels"),
    ({"prompt": "a", "fps": 1001}, "fps", "1 to 1000"),
    ({"prompt": "a", "steps": 201}, "steps", "up to 200"),
    ({"prompt": "a", "steps": 2.5}, "steps", "steps=2.5 must be an integer"),
    ({"prompt": "a", "steps": True}, None, "steps is true"),
    ({"prompt": "a", "seed": -1}, "seed", "seed=-1 must be 0 or more"),
    ({"prompt": "a", "seed": 2**63}, "seed", "must be less than"),
    ({"prompt": "a", "guidance": "much"}, "guidance", "guidance='much' must be a number"),
    ({"prompt": "a", "preset": "best"}, "preset", "quality, balanced, fast"),
    ({"prompt": "a", "sparsity": 1.0}, "sparsity", "sparsity=1.0 must be less than 1"),
    ({"prompt": "a", "method": "magic"}, "method", "this server has rainfusion, piecewise"),
    (
        {"prompt": "a", "loops": "on"},
        "loops",
        "loops is no field here: leave it out, or take one of prompt,",
    ),
    ({"prompt": "a", "cache": "on"}, "cache", "this server has: off"),
    ({"prompt": "a", "cache": "off", "cache_threshold": 0.1}, "cache_threshold", "without a cache"),
    (
        {"prompt": "a", "cache_threshold": -0.1},
        "cache_threshold",
        "cache_threshold=-0.1 must be 0 or more",
    ),
    (
        {"prompt": "a", "request_id": "a b"},
        "request_id",
        "request_id='a b' must be a text of the form",
    ),
    (
        {"prompt": "a", "loops": 1, "steps": 0, "\x1b[2J": 1, "seed": "x"},
        "seed",
        "seed='x' must be an integer; steps=0 must be 1 or more; loops is no field",
    ),
    ({"prompt": "a", "\x1b[2J": 1}, "\\x1b[2J", "\\x1b[2J is no field here"),
    ({"prompt": "a", "input_reference": "x"}, "input_reference", "image_url"),
    (
        {"prompt": "a", "input_reference": {"image_url": "http://169.254.169.254/"}},
        "input_reference",
        "image_url",
    ),
    (
        {"prompt": "a", "input_reference": {"image_url": "file:///etc/passwd"}},
        "input_reference",
        "image_url",
    ),
    (
        {"prompt": "a", "input_reference": {"image_url": "data:image/png;base64,!!"}},
        "input_reference",
        "base64",
    ),
    (
        {"prompt": "a", "input_reference": {"image_url": "data:image/png;base64,AAAA"}},
        "input_reference",
        "damaged",
    ),
]


@pytest.mark.parametrize(("fields", "param", "words"), BAD)
def test_bad_requests_are_refused(refusing, fields, param, words):
    answer = refusing.client.post(
        "/v1/videos",
        content=json.dumps(fields),
        headers={"Content-Type": "application/json"},
    )
    error = error_of(answer)
    assert answer.status_code in (400, 404), answer.text
    assert (error["param"], error["type"]) == (param, "invalid_request_error")
    assert words in error["message"]
    assert refusing.drain() == []


@pytest.fixture(scope="module")
def refusing(tmp_path_factory):
    made = make_running(tmp_path_factory.mktemp("refusing"))
    yield made
    made.service.store.close()


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"{", "application/json", 400),
        (b"[]", "application/json", 400),
        (b"[" * 100_000, "application/json", 400),
        (b'{"prompt": "a", "guidance": NaN}', "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b"prompt=a", "text/plain", 415),
        (b"prompt=a", "", 415),
        (b"--x\r\nbroken", "multipart/form-data; boundary=x", 400),
        (b"", "multipart/form-data", 400),
    ],
)
def test_bad_bodies_are_refused(refusing, body, kind, status):
    answer = refusing.client.post("/v1/videos", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    error_of(answer)


def test_bad_forms_are_refused(refusing):
    def send(files):
        answer = refusing.client.post("/v1/videos", files=files)
        assert answer.status_code == 400, answer.text
        return error_of(answer)["message"]

    prompt = ("prompt", (None, "a"))
    file = ("input_reference", ("a.png", png(), "image/png"))
    assert "twice" in send([prompt, prompt])
    url = ("input_reference[image_url]", (None, "data:image/png;base64,AAAA"))
    assert "twice" in send([prompt, file, url])  # and not the latter alone
    assert send([prompt, file, file])
    assert "files of a request are input_reference, last_image" in send(
        [prompt, ("other", ("a.png", png(), "image/png"))]
    )
    assert "damaged" in send([prompt, ("input_reference", ("a.png", png()[:40], "image/png"))])
    assert send([prompt, *((f"f{i}", (None, "a")) for i in range(100))])
    assert send([("prompt", (None, "a" * 2**19))])
    assert list(refusing.service.content.path("x").parent.iterdir()) == []


def test_unknown_places_are_errors_in_the_same_form(running):
    for path in ("/v1/videos/nothing", "/v1/videos/..%2f..%2fetc", "/v1/videos/x/content", "/no"):
        answer = running.client.get(path)
        assert answer.status_code == 404 and error_of(answer)["code"] == "not_found"
    answer = running.client.put(f"/v1/videos/video_{'0' * 32}")
    assert error_of(answer)["code"] == "method_not_allowed" and answer.headers["allow"]
    for query, words in (
        ("limit=0", "limit='0' must be 1 or more"),
        ("limit=x", "limit='x' must be an integer"),
        ("order=up", "order='up' must be 'asc' or 'desc'"),
        ("limit=101&order=up", "limit='101' must be 100 or less; order='up' must be"),
        ("after=video_x", "names no video"),
        ("after=%00", "names no video"),
    ):
        answer = running.client.get(f"/v1/videos?{query}")
        assert answer.status_code == 400 and error_of(answer)["param"] == query.split("=")[0]
        assert words in error_of(answer)["message"]


def test_images_arrive_clean(running):
    file = {"prompt": (None, "a"), "input_reference": ("x", png(kind="JPEG"), "image/jpeg")}
    made = running.client.post("/v1/videos", files=file).json()
    stored = running.service.content.path(f"{made['id']}.image.png").read_bytes()
    assert Image.open(io.BytesIO(stored)).format == "PNG"
    url = "data:image/png;base64," + base64.b64encode(png()).decode()
    running.post(prompt="b", input_reference={"image_url": url})
    assert len(running.drain()) == 2
    assert len(journal_lines(running.journal, "image")) == 2


def test_large_uploads_are_refused(tmp_path):
    running = make_running(tmp_path, limits={"upload_bytes": 10_000})
    large = {"prompt": (None, "a"), "input_reference": ("x", b"0" * 20_000, "image/png")}
    answer = running.client.post("/v1/videos", files=large)
    assert answer.status_code == 413 and error_of(answer)["code"] == "too_large"

    def pieces():  # without a length that would tell
        for _ in range(20):
            yield b"0" * 1000

    answer = running.client.post(
        "/v1/videos", content=pieces(), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 413 and error_of(answer)["code"] == "too_large"


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data; boundary=x"])
def test_a_client_that_goes_before_it_has_sent_all(running, kind, caplog):
    """It is no bug of the server, and puts no traceback into its log."""
    parts = [{"type": "http.request", "body": b'{"prompt', "more_body": True}]
    answers = []

    async def receive():
        return parts.pop() if parts else {"type": "http.disconnect"}

    async def send(message):
        answers.append(message)

    names = ("method", "path", "query_string", "headers", "http_version", "type")
    headers = [(b"content-type", kind.encode()), (b"host", b"localhost")]
    values = ("POST", "/v1/videos", b"", headers, "1.1", "http")
    asyncio.run(running.client.app(dict(zip(names, values, strict=True)), receive, send))
    assert answers[0]["status"] == 400 and not running.drain()
    assert not [record for record in caplog.records if record.exc_info]


def test_a_length_that_is_no_number_of_bytes(running):
    answer = running.client.post(
        "/v1/videos", content=b"{}", headers={"Content-Length": "9" * 5000}
    )
    assert answer.status_code == 413 and error_of(answer)["code"] == "too_large"


def test_tokens(tmp_path):
    running = make_running(tmp_path, token="secret")
    for header in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}):
        answer = running.client.get("/v1/videos", headers=header)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert error_of(answer)["type"] == "authentication_error"
    asked = running.client.get("/metrics")
    assert asked.status_code == 401 and asked.headers["www-authenticate"].startswith("Basic")
    assert running.client.get("/metrics", auth=("anybody", "secret")).status_code == 200
    assert running.client.get("/metrics", auth=("secret", "wrong")).status_code == 401
    broken = running.client.get("/metrics", headers={"Authorization": "Basic !"})
    assert broken.status_code == 401
    assert running.client.get("/health").status_code == 200
    good = {"Authorization": "Bearer secret"}
    assert running.client.get("/v1/videos", headers=good).status_code == 200


def test_pages_of_other_sites_cannot_use_it(running):
    form = {"prompt": (None, "a")}
    for origin in ("https://example.com", "null", "http://testserver:81"):
        answer = running.client.post("/v1/videos", files=form, headers={"Origin": origin})
        assert answer.status_code == 403 and error_of(answer)["code"] == "cross_origin"
    own = running.client.post("/v1/videos", files=form, headers={"Origin": "http://testserver"})
    assert own.status_code == 200


def test_names_of_others_that_lead_here_are_refused(tmp_path):
    """DNS rebinding: to a browser, the page of such a name and this service are one site."""
    running = make_running(tmp_path, hosts=("Videos.example.",))
    token = make_running(tmp_path, token="secret", hosts=())
    every = make_running(tmp_path, hosts=("*",))
    ours = ("127.0.0.1:8000", "localhost", "LOCALHOST:80", "a.localhost", "[::1]:8000", "192.0.2.7")
    ours += ("videos.example:8000", "VIDEOS.example.", "")
    theirs = ("evil.example", "evil.example:8000", "127.0.0.1.evil.example", "[x]", "[", ".")
    theirs += ("localhost.evil.example", "videos.example.evil", "1.2.3")
    for host in (*ours, *theirs):
        headers = {"Host": host, "Origin": f"http://{host}"}
        for answer in (
            running.client.get("/v1/videos", headers=headers),
            running.client.post("/v1/videos", json={"prompt": "a"}, headers=headers),
        ):
            assert (answer.status_code == 200) is (host in ours), host
            if host in theirs:
                assert answer.status_code == 403 and error_of(answer)["code"] == "unknown_host"
        assert running.client.get("/health", headers={"Host": host}).status_code == 200  # probes
        assert every.client.get("/v1/videos", headers={"Host": host}).status_code == 200
        headers["Authorization"] = "Bearer secret"
        assert token.client.get("/v1/videos", headers=headers).status_code == 200


def test_health_and_metrics(running):
    assert running.client.get("/health").json() == {"status": "ok", "model": "noop", "workers": 1}
    running.post()
    running.client.get("/nowhere/1")
    text = running.client.get("/metrics").text
    assert 'rainfusion_jobs{status="queued"} 1.0' in text
    assert "rainfusion_workers 1.0" in text
    assert (
        'rainfusion_http_requests_total{method="POST",route="/v1/videos",status="200"} 1.0' in text
    )
    assert "nowhere" not in text  # paths of strangers are no labels


def test_before_the_first_worker(tmp_path):
    running = make_running(tmp_path)
    running.service._deployment = "another"
    answer = running.client.get("/health")
    assert (answer.status_code, answer.json()["status"]) == (503, "loading")
    answer = running.client.post("/v1/videos", json={"prompt": "a"})
    assert answer.status_code == 503 and error_of(answer)["code"] == "not_ready"
    assert running.client.get("/metrics").status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"size": "48x64"}, "size", "48x64: this server makes 32x64 or 64x64 to 96x96 (width"),
        ({"size": "96x112"}, "size", "this server makes"),
        ({"size": "96x96", "frames": 17}, "frames", "of 96x96 this server makes 5 to 13 frames"),
        ({"size": "32x64", "frames": 5}, "frames", "of 32x64 this server makes 9 frames"),
        ({"size": "32x64", "frames": 8}, "frames", "8 frames: tiny takes 4k + 5"),
        ({"size": "32x64", "frames": 9}, None, ""),
        ({"seconds": 0.01}, None, ""),
    ],
)
def test_sizes_of_no_engine_are_refused_at_the_door(fields, param, words):
    """They would wait in the queue and then fail."""
    one = {"frames": (9, 9), "height": (64, 64), "width": (32, 32)}
    other = {"frames": (5, 13), "height": (64, 96), "width": (64, 96)}
    model = described(ranges=(one, other), frames_first=5)
    request = VideoRequest.read({"prompt": "a", **fields})
    if param is None:
        assert plan(request, model, Limits()).frames in (5, 9)
        return
    with pytest.raises(ServiceError, match=re.escape(words)) as refused:
        plan(request, model, Limits())
    assert refused.value.param == param


def test_a_model_of_images_needs_one():
    request, model = VideoRequest.read({"prompt": "a"}), described(starts=((), ("image",)))
    plan(request, model, Limits())
    of_images = described(starts=(("image",),))
    plan(request, of_images, Limits(), media=["image"])
    with pytest.raises(ServiceError, match="makes videos of an image") as refused:
        plan(request, of_images, Limits())
    assert refused.value.param == "input_reference"


FIRST_AND_LAST = ("image", "last_image")


@pytest.mark.parametrize(
    ("starts", "given", "param", "words"),
    [
        (
            ((),),
            ["image", "last_image"],
            "input_reference",
            "text alone: leave out input_ref.* and",
        ),
        (((), ("image",)), ["image", "last_image"], "last_image", "an image: leave out last_image"),
        (((), ("image",)), ["last_image"], "last_image", "text alone: leave out last_image"),
        ((FIRST_AND_LAST,), ["image"], "last_image", "an image and a last image: send last_image"),
        ((FIRST_AND_LAST,), [], "input_reference", "send input_reference and last_image"),
        (((), FIRST_AND_LAST), ["last_image"], "input_reference", "send input_reference$"),
        ((("image",), FIRST_AND_LAST), [], "input_reference", "an image: send input_ref"),
    ],
)
def test_what_it_does_not_start_from_is_refused_at_the_door(starts, given, param, words):
    request, model = VideoRequest.read({"prompt": "a"}), described(starts=starts)
    with pytest.raises(ServiceError, match=f"tiny makes videos of .*{words}") as refused:
        plan(request, model, Limits(), media=given)
    assert refused.value.param == param
    for start in starts:
        plan(request, model, Limits(), media=start)


def test_a_first_and_a_last_image(running):
    """By a file, by a data URL in JSON and in a form; kept and deleted together."""
    url = "data:image/png;base64," + base64.b64encode(png((4, 4))).decode()
    first = ("x", png(kind="JPEG"), "image/jpeg")
    form = {"prompt": (None, "a"), "input_reference": first}
    bodies = (
        {"files": {**form, "last_image": ("y", png((4, 4)), "image/png")}},
        {"files": {**form, "last_image[image_url]": (None, url)}},
        {"json": {"prompt": "a", **dict.fromkeys(REFERENCES, {"image_url": url})}},
    )
    ids = [running.client.post("/v1/videos", **body).json()["id"] for body in bodies]
    folder = running.service.content.path("x").parent
    for name, size in (("image", (8, 8)), ("last_image", (4, 4))):
        stored = Image.open(folder / f"{ids[0]}.{name}.png")
        assert (stored.format, stored.size) == ("PNG", size)
    assert running.drain() == ids
    for name in FIRST_AND_LAST:
        assert len(journal_lines(running.journal, name)) == 3
    for job in ids:
        assert running.client.delete(f"/v1/videos/{job}").json()["deleted"]
    assert list(folder.iterdir()) == []


REFERENCES = ("input_reference", "last_image")


def test_a_last_image_makes_another_request(running):
    def send(**files):
        form = {"prompt": (None, "a"), "request_id": (None, "k"), **files}
        return running.client.post("/v1/videos", files=form)

    one, other = (("x", png(size), "image/png") for size in ((8, 8), (4, 4)))
    whole = dict(zip(REFERENCES, (one, other), strict=True))
    first = send(**whole).json()
    assert send(**whole).json() == first
    for files in (
        {"input_reference": one},
        dict(zip(REFERENCES, (other, one), strict=True)),
        dict(zip(REFERENCES, (one, one), strict=True)),
    ):
        assert error_of(send(**files))["code"] == "idempotency_conflict"
    kept = {path.name for path in running.service.content.path("x").parent.iterdir()}
    assert kept == {f"{first['id']}.{name}.png" for name in FIRST_AND_LAST}


def test_a_bad_last_image_leaves_nothing(running):
    prompt = {"prompt": (None, "a"), "input_reference": ("x", png(), "image/png")}
    for last, words in (
        (("y", b"no picture", "image/png"), "last_image is no PNG"),
        (("y", png((6000, 6000)), "image/png"), "last_image has 6000x6000 pixels"),
    ):
        answer = running.client.post("/v1/videos", files={**prompt, "last_image": last})
        assert error_of(answer)["param"] == "last_image" and words in answer.text
    bad = {"prompt": "a", "last_image": {"image_url": "http://169.254.169.254/"}}
    assert error_of(running.client.post("/v1/videos", json=bad))["param"] == "last_image"
    assert list(running.service.content.path("x").parent.iterdir()) == []


def test_other_names_of_fields(running):
    made = running.post(num_frames=9, num_inference_steps=3, guidance_scale=2.0)
    job = running.service.get(made["id"])
    assert (job.request.frames, job.request.steps, job.request.guidance) == (9, 3, 2.0)
    assert running.post(seconds="1")["seconds"] == "1.125"  # 9 frames of 8 a second


def test_the_contract(running):
    """docs/serving/openapi.json, written by scripts/serve_openapi.py, is what is served."""
    kept = json.loads((ROOT / "docs/serving/openapi.json").read_text(encoding="utf-8"))
    assert running.client.get("/openapi.json").json() == kept
