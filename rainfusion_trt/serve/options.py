"""Options of ``rainfusion-trt serve`` that ``run`` does not have."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Checkpoint = Annotated[
    str | None,
    typer.Option(help="Diffusers directory or hub id: text encoder, VAE, scheduler."),
]
Demo = Annotated[bool, typer.Option("--demo", help="The small model that ships with the package.")]
Folder = Annotated[Path, typer.Option(help="Where jobs and videos are kept.")]
Database = Annotated[
    str | None, typer.Option(help="SQLAlchemy URL (default: SQLite in the folder).")
]
Content = Annotated[
    str | None, typer.Option(help="Folder or fsspec URL of videos (default: in the folder).")
]
Host = Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 is every one.")]
Port = Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)]
Replicas = Annotated[int, typer.Option(help="Workers, each with its own GPUs.", min=1)]
Gpus = Annotated[int, typer.Option(help="GPUs of one worker, which make a clip together.", min=1)]
Queue = Annotated[int | None, typer.Option(help="Jobs that may wait (default: 64).", min=1)]
Page = Annotated[bool, typer.Option("--page", help="A page for people at / (extra: page).")]
AllowHost = Annotated[
    list[str] | None,
    typer.Option(help="Name that clients may call it by without a token; may be repeated."),
]
Settings = Annotated[
    Path | None,
    typer.Option(help="YAML file of settings, instead of the other options but host and port."),
]
