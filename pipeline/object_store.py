"""Objects under one URL, through fsspec: listed, fetched, and written only where they are still what was seen.

S3 checks that itself (`If-None-Match: *`, `If-Match`). Other file systems create a new object exclusively where they
can, and for a replacement are asked before; there the lease of the folder (`pipeline.remote`) keeps other writers out.
Credentials are those that the file system's library finds by itself (environment, files, roles): none is taken in a
URL, kept, or printed.
"""

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline.errors import BadInput, MissingData, UserError

log = logging.getLogger(__name__)
ONE_PUT = 100 << 20  # bytes up to which a replacement is one conditional request; S3 takes 5 GB in one
_SECRETS = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID")
_CONFLICTS = {"PreconditionFailed", "ConditionalRequestConflict", "412", "409"}


class Changed(Exception):
    """An object is not what it was when it was seen last."""


@dataclass(frozen=True)
class Version:
    """An object as the server describes it."""

    token: str
    """Differs where the contents differ: S3's ETag."""
    size: int
    """Bytes."""
    mtime: int
    """When it was written, by the server's clock: nanoseconds since the epoch; 0 where it does not say."""


class ObjectStore:
    """All objects whose names begin with a URL; keys are what follows it.

    Args:
        url: `s3://bucket/prefix`, or of another file system that fsspec knows.

    Raises:
        BadInput: no such file system, or credentials in the URL.
        MissingData: its library is not installed.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        scheme, _, rest = self.url.partition("://")
        if "@" in rest.partition("/")[0]:
            raise BadInput(
                f"{scheme}://... cannot be the workspace: its URL holds credentials",
                fix="leave them out of the URL; give them as the library reads them, such as AWS_ACCESS_KEY_ID",
            )
        if not rest or "::" in url or scheme in ("file", "local", "http", "https", "data"):
            expected = "a folder, or a URL such as s3://bucket/prefix"
            raise BadInput(f"{self.url[:200]} cannot be the workspace", expected=expected, got="a URL of another kind")
        try:
            self._fs, self._prefix = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ModuleNotFoundError):
            package = {"s3": "dits-retrieval[s3]", "gs": "gcsfs", "gcs": "gcsfs", "az": "adlfs", "abfs": "adlfs"}
            fix = f"pip install '{package.get(scheme, scheme)}'"
            raise MissingData(f"{scheme}:// needs a library that is not installed", fix=fix) from None
        except ValueError as error:
            raise BadInput(f"{self.url[:200]} cannot be the workspace ({error})") from None
        self._s3 = hasattr(self._fs, "call_s3")

    def find(self, below: str = "") -> dict[str, Version]:
        """Every object under a folder, by key."""
        place = self._place(below)
        with self._told():
            self._fs.invalidate_cache()
            found = self._fs.find(place, detail=True)
        start = len(self._prefix) + 1
        return {name[start:]: _version(about) for name, about in found.items() if about["type"] == "file"}

    def require(self) -> None:
        """Raise MissingData unless the bucket is there and may be read."""
        if self._s3:  # listing nothing in a bucket that is there looks like a folder that is not there
            with self._told():
                self._fs.call_s3("list_objects_v2", Bucket=self._prefix.partition("/")[0], MaxKeys=1)

    def look(self, key: str) -> Version | None:
        """One object, None where it is not there."""
        with self._told():
            try:
                self._fs.invalidate_cache()
                return _version(self._fs.info(self._place(key)))
            except FileNotFoundError:
                return None

    def read(self, key: str) -> bytes:
        """Raises FileNotFoundError."""
        with self._told(absent=True):
            data: bytes = self._fs.cat_file(self._place(key))
            return data

    def get(self, keys: Sequence[str], paths: Sequence[Path]) -> None:
        """Fetch objects, several at a time. Raises FileNotFoundError."""
        with self._told(absent=True):
            self._fs.get([self._place(key) for key in keys], [str(path) for path in paths])

    def put(self, source: Path | bytes, key: str, seen: str | None) -> Version:
        """Write an object.

        Args:
            source: a file, or the bytes.
            key: where.
            seen: token of the version that it replaces; None: there was none.

        Raises:
            Changed: another has written or removed it since.
        """
        place = self._place(key)
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        with self._told(), _conflicts():
            if self._s3 and size <= ONE_PUT:
                bucket, name, _ = self._fs.split_path(place)
                body = source if isinstance(source, bytes) else source.read_bytes()
                only = {"IfNoneMatch": "*"} if seen is None else {"IfMatch": seen}
                token = self._fs.call_s3("put_object", Bucket=bucket, Key=name, Body=body, **only)["ETag"]
            else:
                if seen is not None and getattr(self.look(key), "token", None) != seen:
                    raise Changed(key)
                mode = "create" if seen is None else "overwrite"
                if isinstance(source, bytes):
                    self._fs.pipe_file(place, source, mode=mode)
                else:
                    self._fs.put_file(str(source), place, mode=mode)
                token = None
        version = self.look(key)
        if version is None or token not in (None, version.token):
            raise Changed(key)
        return version

    def delete(self, keys: Sequence[str]) -> None:
        """Remove objects, one after the other in this order; those that are gone already are passed over."""
        for key in keys:
            with self._told():
                try:
                    self._fs.rm_file(self._place(key))
                except FileNotFoundError:
                    continue

    def _place(self, key: str) -> str:
        return f"{self._prefix}/{key}" if key else self._prefix

    @contextmanager
    def _told(self, absent: bool = False) -> Iterator[None]:
        """Raise what a file system's library raises as one line, without a secret in it."""
        try:
            yield
        except (UserError, Changed):
            raise
        except FileNotFoundError as error:
            if absent or not _no_bucket(error):
                raise
            raise MissingData(f"{self.url}: there is no such bucket", fix="make it, or correct the name") from None
        except FileExistsError:
            raise
        except Exception as error:  # each library raises its own
            kind = type(error).__name__
            if not isinstance(error, OSError) and type(error).__module__.partition(".")[0] in ("builtins", "pipeline"):
                raise
            if "Credentials" in kind or isinstance(error, PermissionError):
                what, fix = "may not be read or written with these credentials", "set AWS_ACCESS_KEY_ID and its like"
                if "Credentials" in kind:
                    what = "needs credentials, and there are none"
            else:
                what, fix = "cannot be reached", "see to the network or the server, then run the same command again"
            raise MissingData(f"{self.url}: {what} ({without_secrets(f'{kind}: {error}')[:300]})", fix=fix) from None


def _no_bucket(error: Exception) -> bool:
    return "bucket" in str(error).lower()


@contextmanager
def _conflicts() -> Iterator[None]:
    """A refused condition is Changed, whatever the library makes of it."""
    try:
        yield
    except FileExistsError:
        raise Changed from None
    except FileNotFoundError as error:
        if _no_bucket(error):
            raise
        raise Changed from None
    except Exception as error:
        answer = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
        if isinstance(answer, Mapping) and answer.get("Error", {}).get("Code") in _CONFLICTS:
            raise Changed from None
        raise


def without_secrets(text: str) -> str:
    """A message of a library, should it ever quote a credential of the environment."""
    for name in _SECRETS:
        if len(secret := os.environ.get(name, "")) > 3:
            text = text.replace(secret, "***")
    return text


def _version(about: Mapping[str, Any]) -> Version:
    """What a file system says of an object: the names of these fields differ."""
    size = int(about.get("size") or 0)
    when = next((about[name] for name in ("LastModified", "mtime", "updated", "created") if about.get(name)), None)
    if isinstance(when, str):
        when = datetime.fromisoformat(when)
    if isinstance(when, datetime):
        when = (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()
    mtime = int(float(when) * 1e9) if when is not None else 0
    names = ("ETag", "etag", "generation", "md5Hash", "content_md5")
    token = next((str(about[name]) for name in names if about.get(name)), f"{size}-{mtime}")
    return Version(token, size, mtime)
