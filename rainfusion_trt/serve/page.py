"""A page at ``/`` for people: a text, a video, and the queue. Extra ``page`` (Gradio).

It is one more door: it knows the `VideoService` and nothing of workers, stores or HTTP.
"""

from __future__ import annotations

import contextlib
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
from rainfusion_trt.serve.request import VideoRequest
from rainfusion_trt.serve.service import VideoService

_LOOK_S = 1.0  # between two looks at the jobs
_LISTED = 20
_CACHED_S = 86400  # that Gradio's copies of uploaded images are kept; jobs have their own
_SWEPT_S = 3600  # between two looks at those
_NO_PAGES = ("/v1/{rest:path}", "/health", "/metrics", "/openapi.json")
_METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
_USUAL = "usual"  # the server's own choice
_COLUMNS = ("video", "status", "%", "prompt")


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
        image: str | None,
        preset: str,
        sparsity: float | None,
        steps: float | None,
        seed: float | None,
        beside: bool,
    ) -> list[str]:
        """Put a video into the queue, and with `beside` a dense one of the same noise; their ids.

        `image` is the path of a file, which is looked at as any other.

        Raises
        ------
        RainFusionError
            The service does not make such a video.
        """
        fields: dict[str, Any] = {"prompt": prompt}
        fields |= {"steps": _whole(steps), "seed": _whole(seed)}
        sparse = {
            "preset": None if preset == _USUAL else preset,
            "sparsity": sparsity,
        }
        file = None if image is None else Path(image).read_bytes()
        first = self._submit({**fields, **sparse}, file)
        if not beside:
            return [first.id]
        dense = {**fields, "seed": first.request.seed, "sparsity": 0.0}
        return [first.id, self._submit(dense, file).id]

    def cancel(self, ids: list[str]) -> None:
        """Cancel what is not finished of some jobs."""
        for job in self._known(ids):
            self._service.cancel(job.id)

    def look(self, ids: list[str]) -> tuple[str, str, list[list[str]]]:
        """How far some jobs are in words, their videos in HTML, and the queue as a table."""
        jobs = self._known(ids)
        said = "\n\n".join(_told(job) for job in jobs)
        # Ids are the server's own: nothing of a user's text is in this.
        shown = "".join(
            f'<video controls loop src="/v1/videos/{job.id}/content" style="width:48%"></video>'
            for job in jobs
            if job.status == "completed"
        )
        listed, _ = self._service.list(after=None, limit=_LISTED, newest_first=True)
        rows = [[job.id, job.status, str(job.progress), job.request.prompt] for job in listed]
        return said, shown, rows

    def _submit(self, fields: dict[str, Any], image: bytes | None) -> Job:
        given = {name: value for name, value in fields.items() if value is not None}
        return self._service.submit(VideoRequest.read(given), image)

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
            raise gradio.Error(str(error)) from error

    cache = {"delete_cache": (_SWEPT_S, _CACHED_S)}
    with gradio.Blocks(title="rainfusion-trt", analytics_enabled=False, **cache) as blocks:
        ids = gradio.State([])
        prompt = gradio.Textbox(label="Prompt", max_length=service.limits.prompt_characters)
        # The file as it came: Gradio would decode any format and size before we looked at it.
        image = gradio.Image(
            label="First frame, for models that take one", type="filepath", image_mode=None
        )
        with gradio.Row():
            preset = gradio.Dropdown([_USUAL, *PRESETS], value=_USUAL, label="Preset")
            sparsity = gradio.Number(None, label="Sparsity", minimum=0, maximum=0.99)
            steps = gradio.Number(None, label="Steps", precision=0, minimum=1)
            seed = gradio.Number(None, label="Seed", precision=0, minimum=0)
        beside = gradio.Checkbox(label="Dense attention beside it, from the same noise")
        with gradio.Row():
            start = gradio.Button("Make", variant="primary")
            stop = gradio.Button("Cancel")
        said = gradio.Markdown()
        shown = gradio.HTML()
        queue = gradio.Dataframe(headers=list(_COLUMNS), label="Queue", interactive=False)
        inputs = [prompt, image, preset, sparsity, steps, seed, beside]
        start.click(make, inputs, ids, api_name=False)
        stop.click(page.cancel, ids, None, api_name=False)
        gradio.Timer(_LOOK_S).tick(
            page.look, ids, [said, shown, queue], api_name=False, show_progress="hidden"
        )
    return blocks


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


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)
