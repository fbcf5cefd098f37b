"""Fingerprints of settings, compared before artefacts are combined."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any


def fingerprint(settings: Mapping[str, Any]) -> str:
    """16 hex digits that change when any setting changes.

    >>> fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    True
    """
    canonical = json.dumps(settings, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def describe_difference(expected: Mapping[str, Any], got: Mapping[str, Any]) -> str:
    """Name every key whose value differs, with both values.

    >>> describe_difference({"model": "ViT-B-32", "dtype": "float16"}, {"model": "ViT-B-16", "dtype": "float16"})
    "model: 'ViT-B-32' != 'ViT-B-16'"
    """
    absent = object()
    rows = []
    for key in sorted({*expected, *got}):
        left, right = expected.get(key, absent), got.get(key, absent)
        if left != right:
            shown = ["(absent)" if value is absent else repr(value) for value in (left, right)]
            rows.append(f"{key}: {shown[0]} != {shown[1]}")
    return "; ".join(rows)
