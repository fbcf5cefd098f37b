"""Comparing files with a store, without decoding anything: every combination against the obvious answer."""

import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.errors import BadInput
from pipeline.extract.sync import begin, compare, finish
from pipeline.fingerprint import source_file
from pipeline.stores.features import ClipSource, FeatureStore, VideoFeatures
from pipeline.stores.manifest import CORPUS, Manifest, VideoEntry

NAMES = [f"{number}.mp4" for number in range(8)]


def make_store(folder, names, *, recorded=True):
    """A store of these files, whose features are the content's bytes, and their manifest."""
    store = FeatureStore.create(folder / "store", {"embed_dim": 2, "num_frames": 1}, media_root=str(folder))
    write(store, folder, names, recorded)
    return store


def write(store, folder, names, recorded=True):
    files = [source_file(folder / name) for name in names]
    embeds = np.array([[[(folder / name).read_bytes()[0], 1]] for name in names], np.float16)
    mask, times = np.ones((len(names), 1), bool), np.zeros((len(names), 1))
    sources = [ClipSource(None, None, file.size, file.mtime, file.digest) for file in files] if recorded else None
    videos = VideoFeatures(list(names), list(names), [CORPUS] * len(names), embeds, mask, times)
    store.write_videos(videos, inputs=names, sources=sources)


def listed(folder):
    names = sorted(path.name for path in folder.glob("*.mp4"))
    return Manifest("m", str(folder), tuple(VideoEntry(name, name, CORPUS) for name in names), {"files": {}})


def synchronise(folder, store):
    """What `extract` does, the decoding aside."""
    plan = compare(listed(folder), store, accept_gone=True)
    with store.lock():
        begin(plan, store)
        missing = [name for name in plan.manifest.ids if name not in store.covered() or name in plan.redo]
        if missing:
            write(store, folder, missing)
        finish(plan, store)
    return plan


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["write", "remove", "move", "touch", "swap"]), st.sampled_from(NAMES), st.sampled_from(NAMES)
    )
    | st.just(("sync", "", "")),
    max_size=12,
)


@given(ACTIONS, st.booleans())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_after_any_changes_the_store_shows_what_is_there(tmp_path_factory, actions, recorded):
    folder = tmp_path_factory.mktemp("media")
    for number, name in enumerate(NAMES[:4]):
        (folder / name).write_bytes(bytes([number]) * (number + 5))
    store, content = make_store(folder, NAMES[:4], recorded=recorded), 50
    synchronise(folder, store)
    for what, first, second in [*actions, ("sync", "", "")]:
        a, b = folder / first, folder / second
        if what == "write":
            content += 1
            a.write_bytes(bytes([content]) * 7)
            os.utime(a, ns=(content, content))
        elif what == "remove" and a.exists() and len(list(folder.glob("*.mp4"))) > 1:
            a.unlink()
        elif what == "move" and a.exists() and first != second:
            a.rename(b)
        elif what == "touch" and a.exists():
            os.utime(a)
        elif what == "swap" and a.exists() and b.exists() and first != second:
            a.rename(folder / "x"), b.rename(a), (folder / "x").rename(b)
        elif what == "sync":
            synchronise(folder, store)
            found = FeatureStore.open(store.path).videos()
            shown = dict(zip(found.video_ids, found.frame_embeds[:, 0, 0].astype(int).tolist(), strict=True))
            assert shown == {path.name: path.read_bytes()[0] for path in folder.glob("*.mp4")}
            assert list(found.paths) == list(found.video_ids)
            assert compare(listed(folder), store).nothing


def test_files_of_a_store_that_recorded_nothing_are_taken_as_they_are(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    store = make_store(tmp_path, NAMES, recorded=False)
    assert synchronise(tmp_path, store).nothing
    (tmp_path / "3.mp4").write_bytes(b"another content of another length")
    assert compare(listed(tmp_path), store).changes.changed == ("3.mp4",)


@pytest.mark.parametrize(("gone", "refused"), [(1, False), (2, True), (8, True)])
def test_a_fifth_may_be_gone(tmp_path, gone, refused):
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    store = make_store(tmp_path, NAMES)
    for name in NAMES[:gone]:
        (tmp_path / name).unlink()
    if refused:
        with pytest.raises(BadInput, match=rf"{gone} of 8 videos are gone.*at most 20%.*--yes"):
            compare(listed(tmp_path), store)
    assert compare(listed(tmp_path), store, accept_gone=True).changes.counts()["gone"] == gone


def test_files_that_left_before_do_not_count_for_the_bound(tmp_path):
    for name in NAMES:
        (tmp_path / name).write_bytes(name.encode())
    store = make_store(tmp_path, NAMES)
    for count, name in enumerate(NAMES[:5]):
        (tmp_path / name).unlink()
        if 8 - count <= 4:  # one of four
            with pytest.raises(BadInput, match="1 of 4 videos are gone"):
                compare(listed(tmp_path), store)
        synchronise(tmp_path, store)
