"""Stage 1 by Ray's actors on a local cluster: the result is that of one process, whatever happens to the actors."""

import os
import signal
from dataclasses import replace
from pathlib import Path

import pytest
from clip_maker import PlainEncoder, make_clip
from test_array_job import part_of, same_files
from test_extract import SETTINGS, corpus, encoder, run, undisturbed  # noqa: F401

from pipeline.errors import BadInput, UserError
from pipeline.stores.features import FeatureStore
from pipeline.stores.manifest import Manifest
from pipeline.video.decode_pyav import FrameRequest, decode_clip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Plain:
    """Makes the encoder of the tests in an actor."""

    def __call__(self, settings) -> PlainEncoder:
        return PlainEncoder()


class Deadly(Plain):
    """Its encoders end their process at every call, or at the n-th call of all until a file says that it happened."""

    def __init__(self, flag: Path | None = None, calls: int = 0):
        self.flag, self.calls = flag, calls

    def __call__(self, settings) -> PlainEncoder:
        made = PlainEncoder()
        real = made.embed_frames

        def embed_frames(frames):
            self.calls -= 1
            if self.calls < 0 and not (self.flag and self.flag.exists()):
                if self.flag:
                    self.flag.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(frames)

        made.embed_frames = embed_frames  # type: ignore[method-assign]
        return made


class Poisoned(Plain):
    """Its encoders end their process at a batch of a certain content."""

    def __init__(self, poison: bytes):
        self.poison = poison

    def __call__(self, settings) -> PlainEncoder:
        made = PlainEncoder()
        real = made.embed_frames

        def embed_frames(frames):
            if any(frame.tobytes() == self.poison for frame in frames):
                os.kill(os.getpid(), signal.SIGKILL)
            return real(frames)

        made.embed_frames = embed_frames  # type: ignore[method-assign]
        return made


class Wordless(Plain):
    """Its encoders end their process at captions."""

    def __call__(self, settings) -> PlainEncoder:
        made = PlainEncoder()
        made.embed_texts = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore
        return made


class Stillborn(Plain):
    """Ends the process that asks for an encoder: at once, or when a file is there; else a deadly encoder."""

    def __init__(self, flag: Path | None = None):
        self.flag = flag

    def __call__(self, settings) -> PlainEncoder:
        if self.flag is None or self.flag.exists():
            os.kill(os.getpid(), signal.SIGKILL)
        return Deadly()(settings)


class NoEncoder(Plain):
    def __call__(self, settings):
        raise BadInput("no such model", got=settings.model)


@pytest.fixture(scope="module", autouse=True)
def cluster():
    import ray

    here = Path(__file__).resolve().parent
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would kill actors of a machine that others use
        environment.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent, here.parents[1]))))
        ray.init(num_cpus=2, include_dashboard=False, logging_level="warning")
        yield ray
        ray.shutdown()


def on_ray(manifest: Manifest, store: Path, make_encoder, actors: int = 2, **changes):
    from pipeline.extract.ray_engine import RayOptions, extract_with_ray

    settings = replace(SETTINGS, **changes)
    return extract_with_ray(manifest, store, settings, options=RayOptions(actors=actors), make_encoder=make_encoder)


@pytest.mark.slow_sample
def test_an_actor_that_dies_in_mid_shard_changes_nothing(corpus, undisturbed, tmp_path):  # noqa: F811
    report = on_ray(corpus, tmp_path / "store", Deadly(tmp_path / "died", calls=1))
    assert (tmp_path / "died").exists()
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    assert (report.new_videos, report.new_captions) == (13, 26)
    same_files(FeatureStore.open(tmp_path / "store"), undisturbed)


@pytest.mark.parametrize("actors", [1, 2])
def test_the_store_is_that_of_a_local_run(corpus, undisturbed, tmp_path, actors):  # noqa: F811
    on_ray(corpus, tmp_path / "store", Plain(), actors)
    same_files(FeatureStore.open(tmp_path / "store"), undisturbed)
    again = on_ray(corpus, tmp_path / "store", Plain(), actors)
    assert (again.new_videos, again.new_captions, again.done) == (0, 0, 10)


def test_a_half_done_job_is_resumed(corpus, encoder, undisturbed, tmp_path):  # noqa: F811
    half = part_of(corpus, tmp_path / "store", encoder, 0, 2)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "store").glob("*-0*")}
    report = on_ray(corpus, tmp_path / "store", Plain())
    assert report.new_videos == 13 - half.new_videos
    assert {path: path.stat().st_mtime_ns for path in before} == before
    same_files(FeatureStore.open(tmp_path / "store"), undisturbed)


def test_a_poison_clip_ends_as_failures_of_its_shard(corpus, encoder, undisturbed, tmp_path):  # noqa: F811
    clip = make_clip(tmp_path / "poison.mp4", 20, first=700)
    frames = decode_clip(str(clip), FrameRequest(4, encoder.frame_size)).frames
    poison = replace(corpus.entries[5], path=str(clip))
    corpus = replace(corpus, entries=(*corpus.entries[:5], poison, *corpus.entries[6:]))
    report = on_ray(corpus, tmp_path / "store", Poisoned(frames[0].tobytes()))
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 6, 7, 1)
    assert report.failure_classes == {"EmptyFile": 1, "MissingFile": 1, "CannotOpen": 1, "WorkerDied": 4}
    store = FeatureStore.open(tmp_path / "store")
    dead = {failure.video_id for failure in store.failures() if failure.error_class == "WorkerDied"}
    assert dead == {entry.video_id for entry in corpus.entries[4:8]}
    assert on_ray(corpus, tmp_path / "store", Plain()).new_videos == 0  # given up, not tried for ever
    run(corpus, tmp_path / "store", encoder, retry_failed="WorkerDied")
    videos, expected = FeatureStore.open(tmp_path / "store").videos(), undisturbed.videos()
    assert sorted(videos.video_ids) == sorted(expected.video_ids)


def test_workers_that_die_at_captions_or_at_their_start_are_an_error(corpus, tmp_path):  # noqa: F811
    with pytest.raises(UserError, match="workers died 3 times at texts-00000-"):
        on_ray(corpus, tmp_path / "store", Wordless())
    assert len(FeatureStore.open(tmp_path / "store").shard_paths("videos")) == 4
    with pytest.raises(UserError, match="workers die while they load the encoder"):
        on_ray(corpus, tmp_path / "store", Stillborn())
    with pytest.raises(UserError, match="workers die while they load the encoder"):
        on_ray(corpus, tmp_path / "other", Stillborn(tmp_path / "other" / "store.json"))


def test_what_is_wrong_with_the_settings_is_said_as_by_a_local_run(corpus, tmp_path):  # noqa: F811
    with pytest.raises(BadInput, match="no such model; got shapes-clip"):
        on_ray(corpus, tmp_path / "store", NoEncoder())
    on_ray(corpus, tmp_path / "store", Plain())
    with pytest.raises(UserError, match="num_frames: 4 != 5"):
        on_ray(corpus, tmp_path / "store", Plain(), num_frames=5)
