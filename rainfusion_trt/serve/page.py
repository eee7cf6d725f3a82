"""A page at ``/`` for people: a text, a video, and the queue. Extra ``page`` (Gradio).

It is one more door: it knows the `VideoService` and nothing of workers, stores or HTTP.
"""

from __future__ import annotations

import contextlib
import html
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.routing import Match, Route

from rainfusion_trt.errors import RainFusionError
from rainfusion_trt.presets import PRESETS
from rainfusion_trt.serve.errors import ServiceError
from rainfusion_trt.serve.jobs import Job
from rainfusion_trt.serve.media import MEDIA
from rainfusion_trt.serve.request import VideoRequest
from rainfusion_trt.serve.service import VideoService
from rainfusion_trt.serve.wipe import SCRIPT, STYLE, wipe
from rainfusion_trt.serve.worker import Media

_LOOK_S = 1.0  # between two looks at the jobs
_LISTED = 20
_CACHED_S = 86400  # that Gradio's copies of uploaded images are kept; jobs have their own
_SWEPT_S = 3600  # between two looks at those
_NO_PAGES = ("/v1/{rest:path}", "/health", "/metrics", "/openapi.json")
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_DIGITS = 32  # of a number
_USUAL = "usual"  # the server's own choice
_COLUMNS = ("video", "status", "%", "prompt")
_TABLE_STYLE = """
table { width: 100%; text-align: left; border-collapse: collapse }
caption { text-align: left }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid var(--border-color-primary) }
td:last-child { overflow-wrap: anywhere }
"""


class Page:
    """What the page does, without how it looks.

    Parameters
    ----------
    service
        The jobs.
    """

    def __init__(self, service: VideoService) -> None:
        self._service = service

    def make(
        self,
        prompt: str,
        preset: str,
        sparsity: str,
        steps: str,
        seed: str,
        beside: bool,
        *pictures: str | None,
    ) -> list[str]:
        """Put a video into the queue, and with `beside` a dense one of the same noise; their ids.

        `pictures` are paths of files in the order of `MEDIA`, which are looked at as any other.
        Numbers are texts as in a form, empty where the server is to choose.

        Raises
        ------
        RainFusionError
            The service does not make such a video.
        """
        fields: dict[str, Any] = {"prompt": prompt, "steps": _given(steps), "seed": _given(seed)}
        sparse = {
            "preset": None if preset == _USUAL else preset,
            "sparsity": _given(sparsity),
        }
        media = {
            one.name: Path(path).read_bytes()
            for one, path in zip(MEDIA, pictures, strict=False)
            if path is not None
        }
        first = self._submit({**fields, **sparse}, media)
        if not beside:
            return [first.id]
        dense = {**fields, "seed": first.request.seed, "sparsity": 0.0}
        return [first.id, self._submit(dense, media).id]

    def cancel(self, ids: list[str]) -> None:
        """Cancel what is not finished of some jobs."""
        for job in self._known(ids):
            self._service.cancel(job.id)

    def look(self, ids: list[str]) -> tuple[str, str, str]:
        """How far some jobs are in Markdown, their videos and the queue in HTML."""
        jobs = self._known(ids)
        said = "\n\n".join(_told(job) for job in jobs)
        # Ids are the server's own: nothing of a user's text is in this.
        videos = [f"/v1/videos/{job.id}/content" for job in jobs if job.status == "completed"]
        if len(videos) == 2:  # as `make` gives them: the sparse one first
            shown = wipe(*videos)
        else:
            one = '<video controls loop src="{}" style="width:48%"></video>'
            shown = "".join(map(one.format, videos))
        listed, _ = self._service.list(after=None, limit=_LISTED, newest_first=True)
        return said, shown, _table(listed)

    def _submit(self, fields: dict[str, Any], media: Media) -> Job:
        given = {name: value for name, value in fields.items() if value is not None}
        return self._service.submit(VideoRequest.read(given), media)

    def _known(self, ids: list[str]) -> list[Job]:
        """The jobs that are still there."""
        found = []
        for job_id in ids:
            with contextlib.suppress(ServiceError):  # it was deleted
                found.append(self._service.get(job_id))
        return found


def add_page(api: FastAPI, service: VideoService) -> None:
    """Put the page at ``/`` of an application, below everything that it has already.

    Raises
    ------
    ImportError
        Gradio is not installed.
    """
    import gradio

    own = list(api.router.routes)

    def unknown(request: Request) -> None:
        """What the interface does not know there stays an error in its form, and is no page."""
        allowed: set[str] = set()
        for route in own:
            if isinstance(route, Route) and route.matches(request.scope)[0] is Match.PARTIAL:
                allowed |= route.methods or set()
        if allowed:
            raise HTTPException(405, headers={"Allow": ", ".join(sorted(allowed))})
        raise HTTPException(404)

    for path in _NO_PAGES:
        api.add_api_route(path, unknown, methods=_METHODS, include_in_schema=False)
    gradio.mount_gradio_app(
        api,
        _layout(gradio, Page(service), service),
        path="/",
        # No fonts or scripts of others.
        theme=gradio.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
        footer_links=[],
        ssr_mode=False,
        enable_monitoring=False,
        max_file_size=service.limits.upload_bytes,
    )


def _layout(gradio: Any, page: Page, service: VideoService) -> Any:
    def make(*given: Any) -> list[str]:
        try:
            return page.make(*given)
        except RainFusionError as error:
            raise gradio.Error(html.escape(str(error)), print_exception=False) from error

    cache = {"delete_cache": (_SWEPT_S, _CACHED_S)}
    with gradio.Blocks(title="rainfusion-trt", analytics_enabled=False, **cache) as blocks:
        ids = gradio.State([])
        prompt = gradio.Textbox(label="Prompt", max_length=service.limits.prompt_characters)
        # The file as it came: Gradio would decode any format and size before we looked at it.
        with gradio.Row():
            pictures = [
                gradio.Image(label=one.label, type="filepath", image_mode=None) for one in MEDIA
            ]
        with gradio.Row():
            preset = gradio.Dropdown([_USUAL, *PRESETS], value=_USUAL, label="Preset")
            # No `Number`: a browser sends 0 for one that is empty.
            sparsity, steps, seed = (
                gradio.Textbox(label=label, placeholder=_USUAL, max_length=_DIGITS)
                for label in ("Sparsity", "Steps", "Seed")
            )
        beside = gradio.Checkbox(label="Dense attention beside it, from the same noise")
        with gradio.Row():
            start = gradio.Button("Make", variant="primary")
            stop = gradio.Button("Cancel")
        said = gradio.Markdown()
        shown = gradio.HTML(css_template=STYLE, js_on_load=SCRIPT)
        # No `Dataframe`: one that was empty at first shows no rows until its window is resized.
        queue = gradio.HTML(css_template=_TABLE_STYLE)
        inputs = [prompt, preset, sparsity, steps, seed, beside, *pictures]
        start.click(make, inputs, ids, api_name=False)
        stop.click(page.cancel, ids, None, api_name=False)
        gradio.Timer(_LOOK_S).tick(
            page.look, ids, [said, shown, queue], api_name=False, show_progress="hidden"
        )
    return blocks


def _table(jobs: list[Job]) -> str:
    """Jobs in HTML, a row each."""
    rows = [(job.id, job.status, str(job.progress), job.request.prompt) for job in jobs]
    head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>" for row in rows
    )
    return f"<table><caption>Queue</caption><tr>{head}</tr>{body}</table>"


def _told(job: Job) -> str:
    """A job in a line of Markdown."""
    line = f"`{job.id}`: {job.status}, {job.progress} %"
    if job.error is not None:
        return f"{line}, `{job.error.code}`"
    if job.ran is None:
        return line
    known = [step.density for step in job.ran.steps if step.density is not None]
    density = f", {sum(known) / len(known):.0%} of the token pairs" if known else ""
    return f"{line}, {job.ran.generate_seconds:.1f} s, {job.ran.method or 'dense'}{density}"


def _given(text: str) -> str | None:
    return text.strip() or None
