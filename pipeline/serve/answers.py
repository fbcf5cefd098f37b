"""What the API answers with; the OpenAPI document is made from these."""

from typing import Any

from pydantic import BaseModel, Field


class HitAnswer(BaseModel):
    """One result. Paths of the server are not told: `media` and `thumbnail` lead to the file."""

    video_id: str
    name: str = Field(description="The file's name")
    score: float
    start: float | None = Field(description="Seconds into the file where the clip begins; null for a whole file")
    end: float | None
    moment: float | None = Field(description="Seconds into the file of the frame that the query attends to most")
    clip: str = Field(description="More about the clip")
    thumbnail: str = Field(description="The frame at the moment, JPEG")


class SearchAnswer(BaseModel):
    query: str | None = None
    generation: str = Field(description="The index generation that answered")
    hits: list[HitAnswer]


class MediaAnswer(BaseModel):
    """How the clip is played."""

    url: str
    media_type: str
    how: str = Field(description="original, remuxed or transcoded")
    offset: float = Field(description="Second of the file at which this film begins: play from moment - offset")


class ClipAnswer(BaseModel):
    video_id: str
    name: str
    start: float | None
    end: float | None
    metadata: dict[str, Any] = Field(description="The columns that --where filters by")
    captions: list[str]
    media: MediaAnswer | None = Field(description="null when the file cannot be played; `problem` says why")
    problem: str | None = None


class Column(BaseModel):
    name: str
    type: str


class InfoAnswer(BaseModel):
    index: str
    generation: str
    videos: int
    columns: list[Column] = Field(description="What `where` may name")


class HealthAnswer(BaseModel):
    status: str


class ErrorAnswer(BaseModel):
    error: str
