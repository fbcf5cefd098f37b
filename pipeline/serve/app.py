"""The application: routes over a backend. Everything that a request may name is looked up in the index by id."""

import asyncio
import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import IntEnum
from pathlib import PurePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import Field
from starlette.exceptions import HTTPException as StarletteHTTPException

from pipeline.errors import BadInput
from pipeline.retrieve.search import Wanted
from pipeline.serve.answers import (
    ClipAnswer,
    Column,
    ErrorAnswer,
    HealthAnswer,
    HitAnswer,
    InfoAnswer,
    MediaAnswer,
    SearchAnswer,
)
from pipeline.serve.backend import Backend
from pipeline.serve.media import Media, Playable, Source, Unavailable, Workers, is_single_range
from pipeline.serve.metrics import Metrics
from pipeline.serve.page import static_files
from pipeline.serve.queries import Overloaded, Queries
from pipeline.serve.queries import Query as Sentence
from pipeline.serve.security import COOKIE, BodyTooLarge, Gate, same_token
from pipeline.serve.settings import ServeSettings
from pipeline.video.image import read_image
from pipeline.video.limits import DecodeFailure

log = logging.getLogger(__name__)
MAX_TOP = 200
MAX_AGAINST = 8
_COOKIE_SECONDS = 30 * 24 * 3600
_PICTURES_WAITING = 8  # uploads decoded or waiting for it: each may take 200 MB while it is decoded
_PATH = re.compile(r"\bpath\b", re.IGNORECASE)
_FRAGMENT = re.compile(r"#t=(\d+(?:\.\d+)?),(\d+(?:\.\d+)?)$")
_UPLOAD = {  # FastAPI would read the form itself, and turn a body that is too large into a malformed one
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["image"],
                    "properties": {"image": {"type": "string", "format": "binary"}},
                }
            }
        },
    }
}
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": ErrorAnswer, "description": "A mistake in what was given"},
    503: {"model": ErrorAnswer, "description": "Too much work waits; try again"},
}
_NOT_FOUND: dict[int | str, dict[str, Any]] = {404: {"model": ErrorAnswer, "description": "Not in the index"}}

Sentences = Annotated[str, Query(min_length=1, max_length=1000, description="What the video shows")]
Top = Annotated[int, Query(ge=1, le=MAX_TOP, description="How many hits")]
Where = Annotated[str | None, Query(max_length=1000, description="SQL over the columns of /api/info")]
Merge = Annotated[bool, Query(description="Neighbouring clips of a file become one hit")]
PerFile = Annotated[int | None, Query(ge=1, le=MAX_TOP, description="Most hits of one file")]
Against = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    Query(alias="not", max_length=MAX_AGAINST, description="What the video does not show; repeatable"),
]
VideoId = Annotated[str, Query(min_length=1, max_length=4096)]
Seconds = Annotated[float, Query(ge=0, le=1e7, allow_inf_nan=False, description="Into the file")]


class Width(IntEnum):
    """Widths of thumbnails, in pixels."""

    SMALL = 160
    MIDDLE = 320
    LARGE = 640


class _State:
    """What the routes of one application share."""

    def __init__(self, backend: Backend, settings: ServeSettings, metrics: Metrics) -> None:
        self.backend, self.settings, self.metrics = backend, settings, metrics
        self.queries = Queries(
            backend,
            window=settings.batch_window,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting,
            vectors=settings.query_vectors,
            seen=metrics.batches.observe,
        )
        self.media = Media(
            settings.cache_dir,
            max_bytes=settings.media_cache_bytes,
            thumbnail_bytes=settings.thumbnail_cache_bytes,
            transcode_seconds=settings.transcode_seconds,
        )
        self.pictures = Workers(1, "picture", _PICTURES_WAITING)
        vectors, media = self.queries.vectors, self.media
        metrics.watch("dits_queries_waiting", "Searches that wait", lambda: self.queries.waiting)
        metrics.watch("dits_query_vectors_hits", "Sentences whose vector was kept", lambda: vectors.hits)
        metrics.watch("dits_query_vectors_misses", "Sentences embedded", lambda: vectors.misses)
        metrics.watch("dits_film_cache_bytes", "Films made playable", lambda: media.films.bytes)
        metrics.watch("dits_thumbnail_cache_bytes", "Thumbnails kept", lambda: media.thumbnails.bytes)
        self.note_generation()

    def note_generation(self) -> None:
        self.metrics.generation.set(int(self.backend.generation.rpartition("-")[2]))
        self.metrics.videos.set(len(self.backend))

    async def follow_generations(self) -> None:
        """Move to newer generations as they come. A failed move is logged and counted; the old one still answers."""
        while True:
            await asyncio.sleep(self.settings.refresh_seconds)
            try:
                if await asyncio.to_thread(self.backend.refresh):
                    log.info(f"answering from {self.backend.generation}")
                    self.note_generation()
            except Exception as error:
                self.metrics.refresh_errors.inc()
                log.warning(f"could not move to the newer index generation: {error}")

    def source(self, video_id: str) -> Source:
        """The clip of an id. 404 if the index does not hold it."""
        path = self.backend.location(video_id)
        if path is None:
            raise HTTPException(404, "the index holds no such video")
        found = _FRAGMENT.search(video_id)
        return Source(video_id, path, float(found[1]), float(found[2])) if found else Source(video_id, path)

    def answer(self, hits: list[Any], query: str | None = None) -> SearchAnswer:
        shown = [hit_answer(hit) for hit in hits]
        return SearchAnswer(query=query, generation=self.backend.generation, hits=shown)


class _SentFile(FileResponse):
    """A file that is released when it is sent, or its client has gone."""

    def __init__(self, film: Playable) -> None:
        super().__init__(film.path, media_type=film.media_type, headers={"cache-control": "private, no-cache"})
        self._release = film.release

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def create_app(backend: Backend, settings: ServeSettings) -> Any:
    """The ASGI application: the page, the API, and what guards them.

    Args:
        backend: a warm retriever.
        settings: bounds, token, names of the server.
    """
    metrics = Metrics()
    state = _State(backend, settings, metrics)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        state.queries.start()
        follower = asyncio.create_task(state.follow_generations())
        yield
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
        await state.queries.stop()
        state.media.stop()
        state.pictures.stop()

    app = FastAPI(
        title="DITS retrieval",
        description="Search videos by sentences, pictures and other videos.",
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        separate_input_output_schemas=False,
    )
    _add_api(app, state)
    _add_media(app, state)
    _add_page(app, state)
    _add_errors(app)
    return metrics.middleware(Gate(app, settings))


def wanted_of(top: int, where: str | None, merge: bool, per_file: int | None) -> Wanted:
    """The hits that a request asks for. BadInput for a condition that it may not make."""
    return Wanted(top, merge=merge, per_file=per_file, where=condition(where))


def condition(where: str | None) -> str | None:
    """A filter as the index takes it. The index knows the column `path`, by which clients could guess at the server's
    folders, so that word is refused wherever it stands."""
    if where is not None and _PATH.search(where):
        raise BadInput("the word path cannot stand in a condition here", fix="filter by video_id, or by other columns")
    return where if where and where.strip() else None


def hit_answer(hit: Any) -> HitAnswer:
    """A hit as clients see it: links in place of the path."""
    key = quote(hit.video_id, safe="")
    moment = hit.moment if hit.moment is not None else hit.start or 0.0
    return HitAnswer(
        video_id=hit.video_id,
        name=PurePath(hit.path).name,
        score=hit.score,
        start=hit.start,
        end=hit.end,
        moment=hit.moment,
        clip=f"/api/clips/{key}",
        thumbnail=f"/thumbnail/{key}?t={moment:.3f}",
    )


def _add_api(app: FastAPI, state: _State) -> None:
    @app.get("/api/search", responses=_ERRORS, tags=["search"])
    async def search(
        q: Sentences,
        against: Against = [],  # noqa: B006  FastAPI copies it
        top: Top = 24,
        where: Where = None,
        merge: Merge = False,
        per_file: PerFile = None,
    ) -> SearchAnswer:
        """Find videos by a sentence, less half of what other sentences say."""
        if not all(text.strip() for text in (q, *against)):
            raise BadInput("an empty query", fix="describe what the video shows")
        wanted = wanted_of(top, where, merge, per_file)
        return state.answer(await state.queries.sentence(Sentence(q, wanted, tuple(against))), q)

    @app.post("/api/search/image", responses=_ERRORS, openapi_extra=_UPLOAD, tags=["search"])
    async def search_image(
        request: Request, top: Top = 24, where: Where = None, merge: Merge = False, per_file: PerFile = None
    ) -> SearchAnswer:
        """Find videos by a picture, uploaded as the field image of a form."""
        data = await _uploaded(request, "image", state.settings.max_upload_bytes)
        size, pixels = state.backend.frame_size, state.settings.max_upload_pixels
        image = await state.pictures.once(object(), lambda: read_image(data, size, pixels))
        wanted = wanted_of(top, where, merge, per_file)
        return state.answer(await state.queries.run(lambda: state.backend.search_image(image, wanted)))

    @app.get("/api/similar", responses=_ERRORS | _NOT_FOUND, tags=["search"])
    async def similar(
        id: VideoId, top: Top = 24, where: Where = None, merge: Merge = False, per_file: PerFile = None
    ) -> SearchAnswer:
        """Find videos like one of the index."""
        state.source(id)
        wanted = wanted_of(top, where, merge, per_file)
        return state.answer(await state.queries.run(lambda: state.backend.similar(id, wanted)))

    @app.get("/api/clips/{video_id:path}", responses=_NOT_FOUND, tags=["clips"])
    async def clip(video_id: str) -> ClipAnswer:
        """What is known of a clip, and how it is played."""
        source = state.source(video_id)
        media, problem = None, None
        try:
            film = await state.media.film(source)
            url = f"/media/{quote(video_id, safe='')}"
            media = MediaAnswer(url=url, media_type=film.media_type, how=film.how, offset=film.offset)
        except Unavailable as error:
            problem = str(error)
        except DecodeFailure as failure:
            problem = _cannot_play(failure)
        return ClipAnswer(
            video_id=video_id,
            name=PurePath(source.path).name,
            start=source.start,
            end=source.end,
            metadata=await asyncio.to_thread(state.backend.metadata, video_id),
            captions=await asyncio.to_thread(state.backend.captions, video_id),
            media=media,
            problem=problem,
        )

    @app.get("/api/info", tags=["server"])
    async def info() -> InfoAnswer:
        """The index that answers, and the columns that `where` may name."""
        columns = [Column(name=name, type=kind) for name, kind in state.backend.columns().items()]
        backend = state.backend
        return InfoAnswer(
            index=backend.index, generation=backend.generation, videos=len(backend), columns=columns
        )  # fmt: skip

    @app.get("/healthz", tags=["server"])
    async def health() -> HealthAnswer:
        """Whether the server answers."""
        return HealthAnswer(status="ok")

    @app.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Figures in Prometheus' text form."""
        return Response(state.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_media(app: FastAPI, state: _State) -> None:
    @app.head("/media/{video_id:path}", include_in_schema=False)
    @app.get("/media/{video_id:path}", response_class=Response, tags=["clips"])
    async def media(request: Request, video_id: str) -> Response:
        """The clip's file, or what was made of it for browsers; one HTTP range at most."""
        wanted = request.headers.get("range")
        if wanted is not None and not is_single_range(wanted):
            raise HTTPException(416, "one range of bytes at a time: Range: bytes=FIRST-LAST")
        return _SentFile(await state.media.playable(state.source(video_id)))

    @app.get("/thumbnail/{video_id:path}", response_class=Response, tags=["clips"])
    async def thumbnail(video_id: str, t: Seconds = 0.0, width: Width = Width.MIDDLE) -> Response:
        """The frame at a second of the file, JPEG."""
        made = await state.media.thumbnail(state.source(video_id), t, width)
        return Response(made, media_type="image/jpeg", headers={"cache-control": "private, max-age=3600"})


def _add_page(app: FastAPI, state: _State) -> None:
    pages = static_files()

    def static(name: str) -> Response:
        if name not in pages:
            raise HTTPException(404, "no such file")
        content, media_type = pages[name]
        return Response(content, media_type=media_type, headers={"cache-control": "no-cache"})

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return static("index.html")

    @app.get("/docs", include_in_schema=False)
    async def documentation() -> Response:
        return static("docs.html")

    @app.get("/favicon.ico", include_in_schema=False)
    async def icon() -> Response:
        return static("icon.svg")

    @app.get("/static/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return static(name)

    @app.post("/login", include_in_schema=False)
    async def login(request: Request) -> Response:
        """Put the token that the form holds into the page's cookie."""
        async with request.form(max_files=0, max_fields=2) as form:
            given = str(form.get("token", "")).strip()
        if state.settings.token is None or not same_token(given, state.settings.token):
            return HTMLResponse(pages["login.html"][0].replace(b"hidden", b"", 1), 401)
        answer = RedirectResponse("/", 303)
        secure = request.url.scheme == "https"
        answer.set_cookie(
            COOKIE, given, max_age=_COOKIE_SECONDS, httponly=True, samesite="strict", secure=secure
        )  # fmt: skip
        return answer


def _add_errors(app: FastAPI) -> None:
    def error(status: int, text: str, headers: dict[str, str] | None = None) -> JSONResponse:
        return JSONResponse({"error": text}, status, headers=headers)

    @app.exception_handler(StarletteHTTPException)
    async def http(_: Request, raised: StarletteHTTPException) -> Response:
        return error(raised.status_code, str(raised.detail), dict(raised.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, raised: RequestValidationError) -> Response:
        first = raised.errors()[0]
        return error(422, f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}")

    @app.exception_handler(BadInput)
    async def mistake(_: Request, raised: BadInput) -> Response:
        return error(400, str(raised))

    @app.exception_handler(Unavailable)
    async def unavailable(_: Request, raised: Unavailable) -> Response:
        return error(404, str(raised))

    @app.exception_handler(DecodeFailure)
    async def undecodable(_: Request, raised: DecodeFailure) -> Response:
        return error(504 if raised.kind == "TimeLimit" else 422, _cannot_play(raised))

    @app.exception_handler(Overloaded)
    async def overloaded(_: Request, __: Overloaded) -> Response:
        return error(503, "too much work waits; try again", {"retry-after": "1"})

    @app.exception_handler(BodyTooLarge)
    async def too_large(_: Request, __: BodyTooLarge) -> Response:
        return error(413, "the request's body is too large", {"connection": "close"})

    @app.exception_handler(Exception)
    async def internal(_: Request, __: Exception) -> Response:
        return error(500, "internal error; the server's log says more")


def _cannot_play(failure: DecodeFailure) -> str:
    """What clients read: ffmpeg's own words would name files of the server."""
    return f"the file cannot be played ({failure.kind})"


async def _uploaded(request: Request, name: str, max_bytes: int) -> bytes:
    """The bytes of a form's file. BadInput if there is none or it is too large."""
    async with request.form(max_files=1, max_fields=4) as form:
        upload = form.get(name)
        if upload is None or isinstance(upload, str):
            raise BadInput(f"the form has no file {name!r}", fix=f"send it as multipart/form-data, field {name}")
        if (upload.size or 0) > max_bytes:
            raise HTTPException(413, f"the file is larger than {max_bytes} bytes")
        return await upload.read()
