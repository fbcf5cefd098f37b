"""Fixtures of several rooms. Property-based tests draw the same examples in CI every time: only the change decides."""

import os
import sys

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(autouse=True)
def same_draws():
    """Every test draws the same weights and inputs each time: a bound of so many deviations must not fail by chance."""
    if torch := sys.modules.get("torch"):
        torch.manual_seed(0)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A workspace with shapes, small: 12 train, 4 val, 8 test clips."""
    from pipeline.datasets.manifests import dataset_manifest
    from pipeline.extract.corpus import extract_manifest
    from pipeline.extract.settings import ExtractSettings
    from pipeline.workspace import Workspace

    root = tmp_path_factory.mktemp("cli")
    manifest = dataset_manifest(Workspace(root), "shapes", None, None, None, {"train": 12, "val": 4, "test": 8})
    extract_manifest(Workspace(root), manifest, ExtractSettings(precision="float32"))
    return root


@pytest.fixture(scope="module")
def s3():
    """A real S3 server on this machine, to which the environment leads."""
    pytest.importorskip("s3fs", reason="s3fs is not installed (extra s3)")
    pytest.importorskip("moto", reason="moto, the S3 server of this test, is not installed")
    from s3_server import s3_server

    with s3_server() as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield environment
