"""Stage 1 on a Ray cluster of two nodes (two raylets on this machine), one of which is lost."""

import os
import threading
import time
from pathlib import Path

import pytest
from test_array_job import same_files
from test_extract import corpus, encoder, undisturbed  # noqa: F401
from test_ray_engine import Plain, on_ray

from pipeline.stores.features import FeatureStore

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def wait_until(true, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class Slow(Plain):
    """Its encoders take a second a batch, say by a file that one is at work on a node, and wait for one on another."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __call__(self, settings):
        import ray

        made, node = super().__call__(settings), ray.get_runtime_context().get_node_id()
        real = made.embed_frames

        def embed_frames(frames):
            (self.folder / node).touch()
            wait_until(lambda: len(list(self.folder.iterdir())) == 2)
            time.sleep(1)
            return real(frames)

        made.embed_frames = embed_frames  # type: ignore[method-assign]
        return made


def test_a_node_that_is_lost_changes_nothing(corpus, undisturbed, tmp_path, monkeypatch, caplog):  # noqa: F811
    import ray
    from ray.cluster_utils import Cluster

    here = Path(__file__).resolve().parent
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, (here, here.parent, here.parents[1]))))
    (tmp_path / "at work").mkdir()
    cluster = Cluster(initialize_head=True, connect=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        second = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()

        def lose() -> None:
            wait_until((tmp_path / "at work" / second.node_id).exists)
            cluster.remove_node(second, allow_graceful=False)

        killer = threading.Thread(target=lose, daemon=True)
        killer.start()
        report = on_ray(corpus, tmp_path / "store", Slow(tmp_path / "at work"))
        killer.join(60)
        assert (tmp_path / "at work" / second.node_id).exists()
        wait_until(lambda: sum(node["Alive"] for node in ray.nodes()) == 1)
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert "a worker died" in caplog.text
    assert (report.inputs, report.done, report.failed, report.skipped) == (14, 10, 3, 1)
    same_files(FeatureStore.open(tmp_path / "store"), undisturbed)
