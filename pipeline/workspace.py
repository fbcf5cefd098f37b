"""The layout of the workspace."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline import remote
from pipeline.errors import BadInput

MAX_NAME = 255  # bytes of a file name, on every common file system


def safe_name(name: str) -> str:
    """Check that a name is a single folder name inside the workspace. Raises BadInput."""
    if (
        not name
        or len(os.fsencode(name)) > MAX_NAME
        or name in {".", ".."}
        or "/" in name
        or "\\" in name
        or "\0" in name
    ):
        raise BadInput(
            f"{name[:100]!r} cannot be a folder's name", fix="use at most 255 letters, digits, '-', '_' and '.'"
        )
    return name


@dataclass(frozen=True)
class Workspace:
    """The folder of all data, or the one that mirrors an object store; the layout is in docs/reference/formats.md."""

    root: Path

    @classmethod
    def locate(cls, option: Path | None = None) -> "Workspace":
        """--workspace, else $DITS_WORKSPACE, else ./workspace. A URL is mirrored by a folder (`pipeline.remote`)."""
        root = Path(option or os.environ.get("DITS_WORKSPACE") or "workspace")
        what, fix = f"{str(root)[:200]} cannot be the workspace", "give another --workspace, or set $DITS_WORKSPACE"
        if url := remote.url_of(root):
            return cls(remote.attach(url))
        try:
            nearest = next(folder for folder in (root, *root.resolve().parents) if folder.exists())
            long = any(len(os.fsencode(part)) > MAX_NAME for part in root.parts)
        except OSError as error:  # too long, or a circle of links
            raise BadInput(what, got=error.strerror, fix=fix) from None
        if long or not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
            raise BadInput(
                what,
                expected="a folder that can be written to, with names of at most 255 bytes",
                got=str(nearest),
                fix=fix,
            )
        return cls(root)

    def dataset_dir(self, name: str) -> Path:
        return self.root / "datasets" / safe_name(name)

    def manifest_path(self, name: str) -> Path:
        return self.dataset_dir(name) / "manifest.parquet"

    def features_dir(self, name: str, encoder: str) -> Path:
        return self.root / "features" / safe_name(name) / safe_name(encoder)

    def head_dir(self, name: str, run: str) -> Path:
        return self.root / "heads" / safe_name(name) / safe_name(run)

    def index_dir(self, corpus: str) -> Path:
        return self.root / "indexes" / safe_name(corpus)

    def report_dir(self, name: str, run: str) -> Path:
        return self.root / "reports" / safe_name(name) / safe_name(run)

    def feature_dirs(self) -> list[Path]:
        """Every feature store, the most recently extracted last."""
        return _by_age(self.root.glob("features/*/*/store.json"))

    def head_dirs(self, name: str) -> list[Path]:
        """Every finished head of a data set, the most recently trained last."""
        return _by_age(self.root.glob(f"heads/{safe_name(name)}/*/config.json"))

    def index_dirs(self) -> list[Path]:
        return _by_age(self.root.glob("indexes/*/CURRENT"))


def _by_age(markers: Any) -> list[Path]:
    # lstat: a marker that is a circle of links has an age too; whoever reads it refuses it
    return [marker.parent for marker in sorted(markers, key=lambda path: (path.lstat().st_mtime_ns, path))]
