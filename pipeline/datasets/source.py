"""Locate a data set's files, and report all missing ones in one error."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.datasets.readers import Repairs
from pipeline.errors import MissingData
from pipeline.stores.manifest import SPLITS


@dataclass(frozen=True)
class Source:
    """The folders of one data set, the splits that are asked for, and the repairs made while reading them.

    `videos` is None when only the annotations are wanted.
    """

    dataset: str
    annotations: Path
    videos: Path | None = None
    splits: tuple[str, ...] = SPLITS
    repairs: Repairs = field(default_factory=Repairs)

    def files(self, wanted: Mapping[str, str], origin: str) -> dict[str, Path]:
        """`wanted` maps what a file holds to its name ("a.json|b.json": the first that exists). One error lists all."""
        found: dict[str, Path] = {}
        missing = []
        for what, names in wanted.items():
            choices = [self.annotations / name for name in names.split("|")]
            existing = [path for path in choices if path.is_file()]
            if existing:
                found[what] = existing[0]
            else:
                missing.append(f"{' or '.join(map(str, choices))} ({what})")
        if self.videos is not None and not self.videos.is_dir():
            missing.append(f"{self.videos}/ (the folder of video files)")
        if missing:
            raise MissingData(
                f"data set {self.dataset!r} is not complete: {len(missing)} missing",
                expected=", ".join(missing),
                fix=f"get them from {origin}, put them there or name the folders with --videos and --annotations",
            )
        return found

    def wants(self, *splits: str) -> bool:
        return any(split in self.splits for split in splits)
