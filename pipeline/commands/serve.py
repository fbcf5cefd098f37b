"""`serve`, the page and the REST API over a warm retriever."""

import logging
from typing import Annotated

import typer

from pipeline.commands.options import IndexOption, WorkspaceOption, size_in_bytes
from pipeline.errors import BadInput, MissingData
from pipeline.workspace import Workspace

log = logging.getLogger(__name__)
DEVICES = "auto, cpu, cuda, cuda:1 ..."


def serve(
    index: IndexOption = None,
    host: Annotated[str, typer.Option(help="Address to listen on; beyond 127.0.0.1 a token is needed")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on")] = 8000,
    token: Annotated[
        str | None,
        typer.Option(envvar="DITS_TOKEN", help="What clients must show; the variable keeps it out of process lists"),
    ] = None,
    allow_host: Annotated[
        list[str] | None, typer.Option(help="A name by which clients reach the server (a proxy's); repeatable")
    ] = None,
    media_cache: Annotated[str, typer.Option(help="Disk for films converted for browsers")] = "4GB",
    device: Annotated[str, typer.Option(help=f"Where queries are embedded: {DEVICES}")] = "auto",
    workspace: WorkspaceOption = None,
) -> None:
    """Serve a search page and a REST API: http://127.0.0.1:8000, its reference at /docs.

    \b
        python cli.py serve
        DITS_TOKEN=$(openssl rand -hex 24) python cli.py serve --host 0.0.0.0
        curl 'http://127.0.0.1:8000/api/search?q=a+red+ring&top=3'
    """
    try:
        import fastapi  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise MissingData(f"`serve` needs {error.name}", fix="pip install 'dits-retrieval[cpu,serve]'") from None
    from pipeline.serve.settings import ServeSettings

    place = Workspace.locate(workspace)
    settings = ServeSettings(
        cache_dir=place.root / "cache" / "films",
        host=host,
        port=port,
        token=token,
        allowed_hosts=frozenset(name.lower() for name in allow_host or ()),
        media_cache_bytes=size_in_bytes(media_cache),
    )
    _require_free(host, port)

    from pipeline.serve.app import create_app
    from pipeline.serve.live import LiveBackend
    from pipeline.serve.server import make_server

    backend = LiveBackend.open(place, index, device=device)
    log.info(f"{backend.index}, {backend.generation}: {len(backend)} clips at http://{host}:{port}")
    make_server(create_app(backend, settings), settings).run()


def _require_free(host: str, port: int) -> None:
    """BadInput if nothing can listen there, before a model is loaded."""
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise BadInput(f"cannot listen on {host}:{port}", got=error.strerror, fix="give another --port") from None
