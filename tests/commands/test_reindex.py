"""Reindexing as commands meet it: real clips, a real store, the index's own memory of what it was made with."""

from dataclasses import replace
from pathlib import Path

import pytest
from standins import write_video

from dits_head.config import HeadConfig
from dits_head.head import build_head
from pipeline.commands.reindex import update_corpus
from pipeline.datasets.manifests import dataset_manifest
from pipeline.evaluate.evaluation import Options
from pipeline.evaluate.run import evaluate_chosen
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.driver import extract
from pipeline.extract.settings import ExtractSettings, settings_of
from pipeline.resolve import resolve_head, resolve_store
from pipeline.retrieve.corpus import build_corpus_index, generations
from pipeline.retrieve.index import IndexSpec
from pipeline.retrieve.retriever import Retriever
from pipeline.stores import checkpoints
from pipeline.video.limits import Limits
from pipeline.workspace import Workspace

SETTINGS = ExtractSettings(num_frames=2, workers=1, device="cpu", precision="float32")


class Place:
    """A workspace whose data set "base" is a.mp4, b.mp4 and c.mp4, indexed with mean pooling."""

    def __init__(self, folder, settings=SETTINGS):
        self.folder, self.workspace = folder, Workspace(folder / "workspace")
        base = self.clips("base", "a.mp4", "b.mp4", "c.mp4")
        manifest = dataset_manifest(self.workspace, None, base, None, None, {})
        extract_manifest(self.workspace, manifest, settings)
        self.index()

    def clips(self, name, *files):
        """A folder with these clips, each of other content."""
        for file in files:
            path = self.folder / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, seed=f"{name}/{file}")
        return self.folder / name

    def index(self, head_dir=None):
        chosen = resolve_store(self.workspace)
        head = resolve_head(self.workspace, chosen, head_dir=head_dir)
        return build_corpus_index(self.workspace, chosen, head, IndexSpec())

    def reindex(self, source=None, **options):
        return update_corpus(self.workspace, source=str(source) if source else None, **options)

    def ids(self):
        with generations(self.workspace, "base").open() as live:
            return live.rows().video_ids

    def save_head(self, folder):
        """An X-Pool head for the store, as train-head leaves it."""
        store = resolve_store(self.workspace).store
        config = HeadConfig(head="xpool", dim=store.dim)
        record = {"head": config.to_dict(), "encoder": store.settings, "selected_on": None}
        checkpoints.save_head(folder, build_head(config).state_dict(), record)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path)


def test_more_is_extracted_with_the_settings_of_the_store(tmp_path):
    settings = replace(SETTINGS, cache_blocks=1, token_dtype="int8", limits=Limits(max_seconds=77.0))
    place = Place(tmp_path, settings)
    store = resolve_store(place.workspace).store
    assert settings_of(store).limits == settings.limits
    assert place.reindex(place.clips("new", "d.mp4")).added == 1
    assert len(resolve_store(place.workspace).store.frame_activations(["a.mp4", "d.mp4"])["frame_tokens"]) == 2


def test_an_index_of_a_head_from_a_folder_is_searched_and_reindexed_with_it(place, monkeypatch):
    place.save_head(place.folder / "elsewhere")
    monkeypatch.chdir(place.folder)
    place.index(head_dir=Path("elsewhere"))
    monkeypatch.chdir("/")  # wherever the next command is run
    retriever = Retriever.open(place.workspace)
    assert len(retriever.search(["a red ring"])[0]) == 3
    assert place.reindex(place.clips("new", "d.mp4")).how == "appended"
    assert retriever.refresh()
    assert len(retriever.search(["a red ring"])[0]) == 4


def test_clips_of_folders_and_files_called_alike_are_all_indexed(place):
    for drop in ("drop1", "drop2", "drop3", "drop4"):
        corpus = place.clips(f"{drop}/clips", "a.mp4")
        assert place.reindex(corpus).added == 1
        assert place.reindex(corpus).how == "nothing to do"
    twice = place.clips("drop5/clips", "a.mp4", "clips/a.mp4")
    assert place.reindex(twice).added == 2
    assert len(place.ids()) == 9


def test_links_are_known_by_where_they_lie(tmp_path):
    (tmp_path / "base").mkdir()
    write_video(tmp_path / "shelf.mp4", seed="shelf")
    (tmp_path / "base/link.mp4").symlink_to(tmp_path / "shelf.mp4")
    place = Place(tmp_path)
    corpus = place.clips("new")
    corpus.mkdir()
    (corpus / "other.mp4").symlink_to(tmp_path / "shelf.mp4")
    added = [place.reindex(folder).added for folder in (tmp_path / "base", corpus, corpus, tmp_path / "base")]
    assert added == [0, 1, 0, 0]
    assert sorted(resolve_store(place.workspace).store.covered()) == [
        "a.mp4",
        "b.mp4",
        "c.mp4",
        "link.mp4",
        "other.mp4",
    ]


def test_a_clip_that_failed_is_one_failure_however_often_it_is_given(tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base/broken.mp4").write_bytes(b"no video")
    place = Place(tmp_path)
    corpus = place.clips("new", "d.mp4")
    (corpus / "rotten.mp4").write_bytes(b"no video either")
    for folder in (place.folder / "base", corpus, corpus):
        place.reindex(folder)
    failures = resolve_store(place.workspace).store.failures()
    assert sorted((failure.video_id, failure.attempts) for failure in failures) == [
        ("broken.mp4", 1),
        ("rotten.mp4", 1),
    ]


def test_what_is_deleted_stays_out_of_every_later_index(place, caplog):
    place.reindex(delete=["a.mp4"])
    assert place.reindex(place.clips("new", "d.mp4")).added == 1
    assert place.reindex(place.folder / "base").how == "nothing to do"
    assert "1 of the videos stay out" in caplog.messages[-1]
    assert place.ids() == ["b.mp4", "c.mp4", "d.mp4"]
    assert place.index().total == 3
    place.reindex(delete=["b.mp4"])
    place.save_head(place.workspace.head_dir("base", "other"))
    place.reindex(run="other")
    assert place.reindex(place.clips("newer", "e.mp4")).total == 3
    assert place.ids() == ["c.mp4", "d.mp4", "e.mp4"]
    copy = place.clips("again", "a.mp4")
    assert place.reindex(copy).added == 1
    assert "again/a.mp4" in place.ids()


def test_only_what_lies_in_the_folder_is_added(place):
    other = dataset_manifest(place.workspace, None, place.clips("more", "f.mp4"), None, None, {})
    extract(other, resolve_store(place.workspace).store.path, SETTINGS)
    assert place.reindex(place.clips("new", "d.mp4")).added == 1


def test_evaluating_another_head_leaves_the_live_index_alone(place, caplog):
    (place.folder / "captions.csv").write_text("video_id,caption\na.mp4,a red square\nb.mp4,a blue bar\n")
    captioned = dataset_manifest(place.workspace, None, place.folder / "base", None, place.folder / "captions.csv", {})
    extract_manifest(place.workspace, captioned, SETTINGS)
    place.reindex(delete=["c.mp4"])
    place.save_head(place.workspace.head_dir("base", "other"))
    before = sorted(place.workspace.root.glob("indexes/**/[!.]*")), place.ids()
    chosen = resolve_store(place.workspace)

    def measured(run):
        head = resolve_head(place.workspace, chosen, run)
        evaluation, _ = evaluate_chosen(place.workspace, chosen, head, Options(resamples=10), through_index=True)
        return evaluation.contract()["index"]

    assert measured("other")["R@1"] == measured("other")["R@1"]
    assert "the live index was made with another head or other features" in caplog.text
    assert measured("zero-shot")["bytes"] < measured("other")["bytes"], "the live one, without what was deleted"
    assert (sorted(place.workspace.root.glob("indexes/**/[!.]*")), place.ids()) == before
    assert not list(place.workspace.root.glob(".evaluate-*"))
    place.reindex(delete=["a.mp4"])
    assert measured("zero-shot")["shortlist_recall"]["10"] == 100
    assert "lacks 1 of the 2 videos" in caplog.text
    assert place.ids() == ["b.mp4"]


def test_a_lists_columns_become_metadata(place):
    """Of new videos and of those that the store has under another id; columns that it has not named stay."""
    place.clips("more", "d.mp4")
    rows = f"{place.folder / 'base/a.mp4'},1999,\n{place.folder / 'more/d.mp4'},2024,left\n"
    (place.folder / "list.csv").write_text(f"path,year,camera\n{rows}")
    assert place.reindex(place.folder / "list.csv").added == 1
    (place.folder / "list.csv").write_text(f"path,year\n{place.folder / 'more/d.mp4'},2025\n")
    assert place.reindex(place.folder / "list.csv").added == 0
    with Retriever.open(place.workspace) as retriever:
        for where, file in (("year = 1999", "a.mp4"), ("year = 2025 AND camera = 'left'", "d.mp4")):
            assert [Path(hit.path).name for hit in retriever.search(["a ring"], where=where)[0]] == [file]
