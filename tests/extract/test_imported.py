"""Features that another program made become a store: an archive, a folder, a tar; and what is refused."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import BadInput, MissingData
from pipeline.extract.imported import import_features, split_of
from pipeline.stores.features import FeatureStore

REAL = Path(__file__).resolve().parents[3] / "shared" / "real" / "charades_clip_b32.npz"
RNG = np.random.default_rng(7)


def arrays(videos: int = 6, frames: int = 5, width: int = 8) -> dict[str, np.ndarray]:
    return {
        "video_id": np.array([f"v{n}" for n in range(videos)]),
        "split": np.array(["train"] * (videos - 2) + ["val", "test"]),
        "frame_embeds": RNG.standard_normal((videos, frames, width)).astype(np.float16),
        "caption": np.array([f"caption {n}" for n in range(videos + 1)]),
        "caption_video": np.array([*range(videos), 0]),
        "text_embeds": RNG.standard_normal((videos + 1, width)).astype(np.float32),
    }


def saved(path: Path, **changes: np.ndarray | None) -> Path:
    values = {name: value for name, value in (arrays() | changes).items() if value is not None}
    np.savez(path, **values)  # type: ignore[arg-type]
    return path


def test_an_archive_comes_back_as_it_was(tmp_path):
    given = arrays()
    saved(tmp_path / "made.npz", **given)
    report = import_features(tmp_path / "made.npz", tmp_path / "store", num_frames=5)
    store = FeatureStore.open(tmp_path / "store")
    videos, texts = store.videos(), store.texts()
    assert (report.videos, report.captions) == (6, 7)
    np.testing.assert_array_equal(videos.frame_embeds, given["frame_embeds"])
    np.testing.assert_array_equal(texts.text_embeds, given["text_embeds"])
    assert videos.frame_mask.all()
    assert texts.caption_ids[0] == "v0#0"
    assert texts.caption_ids[-1] == "v0#1", "a second caption of a video has a number of its own"
    assert texts.splits == ["train"] * 4 + ["val", "test", "train"]
    assert store.settings["imported_from"] == "made.npz"


def test_frames_beyond_the_number_are_sampled_at_the_middles_and_fewer_are_masked(tmp_path):
    mask = np.ones((6, 5), bool)
    mask[1, 2:] = False
    path = saved(tmp_path / "made.npz", frame_mask=mask)
    import_features(path, tmp_path / "store", num_frames=3)
    videos = FeatureStore.open(tmp_path / "store").videos()
    embeds = np.load(path)["frame_embeds"]
    np.testing.assert_array_equal(videos.frame_embeds[0], embeds[0, [0, 1, 3]])
    assert videos.frame_mask[1].tolist() == [True, True, False]
    np.testing.assert_array_equal(videos.frame_embeds[1, :2], embeds[1, :2])
    assert not videos.frame_embeds[1, 2].any()


def test_a_change_of_one_number_changes_the_fingerprint(tmp_path):
    embeds = arrays()["frame_embeds"]
    for name in ("a", "b"):
        import_features(saved(tmp_path / f"{name}.npz", frame_embeds=embeds), tmp_path / name, num_frames=5)
        embeds = embeds.copy()
        embeds[0, 0, 0] += 1
    stores = [FeatureStore.open(tmp_path / name) for name in ("a", "b")]
    assert stores[0].settings["imported_sha256"] != stores[1].settings["imported_sha256"]


class Encoder:
    """As much of an encoder as an import needs."""

    dim = 8
    settings = {"model": "toy", "activation": "gelu", "embed_dim": 8}  # noqa: RUF012

    def embed_texts(self, sentences):
        import torch

        return torch.tensor([[float(len(sentence))] * 8 for sentence in sentences])


def folder_of(path: Path) -> Path:
    """What clip-video-encode writes: <id>.npy (F, D), <id>.txt or <id>.json beside it."""
    (path / "deep").mkdir(parents=True)
    for number, name in enumerate(("a", "deep/b", "c")):
        np.save(path / f"{name}.npy", np.full((number + 2, 8), number + 1.0, np.float32))
    (path / "a.txt").write_text("a dog\n")
    (path / "deep" / "b.json").write_text(json.dumps({"caption": "a cat", "videoID": 3}))
    return path


def tar_of(folder: Path, path: Path) -> Path:
    with tarfile.open(path, "w") as archive:
        for file in sorted(folder.rglob("*.*")):
            member = tarfile.TarInfo(file.relative_to(folder).as_posix())
            member.size = file.stat().st_size
            archive.addfile(member, io.BytesIO(file.read_bytes()))
    return path


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_a_file_a_video_with_captions_beside_it(tmp_path, form):
    source = folder_of(tmp_path / "made")
    if form == "tar":
        source = tar_of(source, tmp_path / "made.tar")
    import_features(source, tmp_path / "store", num_frames=4, encoder=Encoder())
    store = FeatureStore.open(tmp_path / "store")
    videos, texts = store.videos(), store.texts()
    assert videos.video_ids == ["a", "c", "deep/b"]
    assert videos.frame_mask.sum(1).tolist() == [2, 4, 3]
    assert (videos.frame_embeds[1] == 3).all()
    assert list(zip(texts.video_ids, texts.captions, strict=True)) == [("a", "a dog"), ("deep/b", "a cat")]
    assert texts.text_embeds[:, 0].tolist() == [5, 5]
    assert videos.splits == [split_of(name) for name in videos.video_ids]


def test_splits_by_hash_are_of_the_stated_shares():
    splits = [split_of(f"video-{n}") for n in range(4000)]
    assert abs(splits.count("val") / 4000 - 0.1) < 0.02
    assert abs(splits.count("test") / 4000 - 0.2) < 0.02


def test_captions_given_come_before_those_of_the_source(tmp_path):
    report = import_features(
        folder_of(tmp_path / "made"), tmp_path / "store", encoder=Encoder(), captions={"c": ["one", "two"]}
    )
    assert report.captions == 2
    assert FeatureStore.open(tmp_path / "store").texts().caption_ids == ["c#0", "c#1"]


def with_nan() -> np.ndarray:
    embeds = arrays()["frame_embeds"]
    embeds[2, 1, 3] = np.nan
    return embeds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frame_embeds": None}, "lacks frame_embeds"),
        ({"frame_embeds": with_nan()}, "finite"),
        ({"frame_embeds": np.zeros((6, 5), np.float32)}, "3 axes"),
        ({"frame_embeds": np.zeros((6, 5, 8), np.int64)}, "floats"),
        ({"video_id": np.array(["v0"] * 6)}, "video ids repeat"),
        ({"split": np.array(["train"] * 5 + ["dev"])}, "unknown split"),
        ({"caption_video": np.array([*range(6), 9])}, "caption_video"),
        ({"text_embeds": np.zeros((7, 9), np.float32)}, "text_embeds"),
        ({"text_embeds": None}, "no encoder"),
        ({"frame_mask": np.zeros((6, 5), bool)}, "has no frame"),
    ],
)
def test_what_cannot_be_trusted_is_refused_and_nothing_is_written(tmp_path, changes, said):
    with pytest.raises(BadInput, match=said):
        import_features(saved(tmp_path / "made.npz", **changes), tmp_path / "store", num_frames=5)
    assert not (tmp_path / "store").exists()


def test_pickles_other_files_and_empty_folders_are_refused(tmp_path):
    (tmp_path / "bad").mkdir()
    np.save(tmp_path / "bad" / "x.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadInput, match=r"x\.npy"):
        import_features(tmp_path / "bad", tmp_path / "store")
    with pytest.raises(BadInput, match=r"text\.npz"):
        import_features(tmp_path / "text.npz", tmp_path / "store")
    with pytest.raises(MissingData, match=r"no \.npy"):
        import_features(tmp_path / "empty", tmp_path / "store")
    with pytest.raises(MissingData):
        import_features(tmp_path / "none.npz", tmp_path / "store")


def test_a_store_is_never_overwritten(tmp_path):
    path = saved(tmp_path / "made.npz")
    import_features(path, tmp_path / "store", num_frames=5)
    with pytest.raises(BadInput, match="already"):
        import_features(path, tmp_path / "store", num_frames=5)


@pytest.mark.skipif(not REAL.exists(), reason=f"no real features at {REAL}")
def test_real_features(tmp_path):
    report = import_features(REAL, tmp_path / "store")
    store = FeatureStore.open(tmp_path / "store")
    assert (report.videos, report.captions) == (1000, 2453)
    assert (len(store.videos("train")), len(store.videos("val")), len(store.videos("test"))) == (700, 100, 200)
    assert store.dim == 512
    np.testing.assert_array_equal(store.videos().frame_embeds, np.load(REAL)["frame_embeds"])
