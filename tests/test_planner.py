"""The planner's formulas against files that were written, and its command."""

import json
from dataclasses import asdict

import faiss
import numpy as np
import pytest
from command_line import refused, run

from pipeline.errors import BadInput
from pipeline.planner import (
    MeasuredRates,
    advice,
    build_hours,
    feature_bytes,
    index_bytes,
    index_choices,
    lists_for,
    plan_extraction,
)

RATES = MeasuredRates(
    clips=100,
    frames=1200,
    decode_seconds=10,
    workers=4,
    encode_seconds=2,
    file_bytes=10**8,
    device="cpu",
    model="ViT-B-32",
)


@pytest.mark.parametrize("count", [3_000, 10_000])
@pytest.mark.parametrize("factory", ["Flat", "HNSW32", "HNSW16", "IVF32,Flat", "IVF32,SQ8", "IVF32,PQ8"])
def test_bytes_of_an_index_are_those_of_the_file(factory, count):
    vectors = np.random.default_rng(0).standard_normal((count, 32)).astype(np.float32)
    index = faiss.index_factory(32, factory, faiss.METRIC_INNER_PRODUCT)
    if "PQ" in factory:
        index.pq.cp.niter = 1  # how well it quantises does not change its size
    index.train(vectors)
    index.add(vectors)
    assert index_bytes(factory, count, 32) == pytest.approx(faiss.serialize_index(index).nbytes, rel=0.05)


def test_bytes_of_features_are_those_of_a_store(extracted):
    """Of the embeddings' shard; the catalogue and small files are a constant beside a corpus."""
    store = extracted / "features/shapes/shapes-clip"
    rows = 24
    written = sum(path.stat().st_size for path in store.glob("videos-*.h5"))
    record = json.loads((store / "store.json").read_text())["settings"]
    planned = feature_bytes(rows, record["num_frames"], record["embed_dim"])
    assert planned == pytest.approx(written, rel=0.25)


# Vectors of width 128, type, seconds: measured by benchmarks/planner.py on two quiet cores (docs/results/scale.md).
BUILT = [
    (10_000, "HNSW32", 0.59), (100_000, "Flat", 0.12), (100_000, "HNSW32", 6.35), (100_000, "IVF1024,SQ8", 2.38),
    (100_000, "IVF1024,PQ64", 7.65), (1_000_000, "Flat", 1.18), (1_000_000, "HNSW32", 94.64),
]  # fmt: skip


@pytest.mark.parametrize(("count", "factory", "seconds"), BUILT)
def test_hours_of_building_are_those_that_were_measured(count, factory, seconds):
    assert build_hours(factory, count, 128) * 3600 == pytest.approx(seconds, rel=0.25)


def test_hours_follow_from_the_rates():
    plan = plan_extraction(1e6, 8, 512, RATES, devices=4, cores=100, rows_per_shard=256)
    assert plan.encode_device_hours == pytest.approx(1e6 * 8 / 600 / 3600)
    assert plan.decode_core_hours == pytest.approx(1e6 * 0.4 / 3600)
    assert plan.hours == pytest.approx(max(plan.encode_device_hours / 4, plan.decode_core_hours / 100))
    assert plan.bound == ("encoding" if plan.encode_device_hours / 4 > plan.decode_core_hours / 100 else "decoding")
    assert plan.shards == 3907
    assert plan.bytes_read == 1e12
    more = plan_extraction(1e6, 8, 512, RATES, devices=4 * 25, cores=100, rows_per_shard=256)
    assert more.bound == "decoding"
    with pytest.raises(BadInput, match="--cores"):
        plan_extraction(1e6, 8, 512, RATES, devices=1, cores=0, rows_per_shard=256)


def test_the_defaults_stop_being_wise_where_the_issue_says():
    """Four vectors a clip at 1e9 clips: 288 GB in PQ64, one: 72 GB."""
    assert index_bytes(f"IVF{lists_for(4e9)},PQ64", 4e9, 1024) / 1e9 == pytest.approx(288, rel=0.02)
    assert index_bytes(f"IVF{lists_for(1e9)},PQ64", 1e9, 1024) / 1e9 == pytest.approx(72, rel=0.02)
    assert advice(1e4, 4, 512) == []
    assert len(advice(1e9, 4, 1024)) == 3
    assert [choice.factory.split(",")[0].rstrip("0123456789") for choice in index_choices(1e6, 512)] == [
        "Flat", "HNSW", "IVF", "IVF",
    ]  # fmt: skip


def test_the_command(tmp_path):
    rates = tmp_path / "rates.json"
    rates.write_text(json.dumps(asdict(RATES)))
    result = json.loads(
        run("plan", "--rates", rates, "--videos", "1e9", "--model", "PE-Core-L-14-336", "--json").stdout
    )
    assert result["stage1"]["shards"] == 3906250
    assert result["index"][0]["bytes"] == 4e9 * 4 * 1024
    assert "measured with ViT-B-32" in result["advice"][0]
    assert "decoding bounds it" in run("plan", "--rates", rates, "--videos", "1e6", "--gpus", "64").stdout
    assert "--benchmark --save" in refused("plan", "--rates", tmp_path / "none", "--videos", "1e6")
    rates.write_text("{}")
    assert "lacks clips" in refused("plan", "--rates", rates, "--videos", "1e6")
    rates.write_text(json.dumps(asdict(RATES) | {"clips": 0}))
    assert "positive" in refused("plan", "--rates", rates, "--videos", "1e6")


def test_rates_of_a_benchmark_can_be_planned_with(extracted, tmp_path):
    rates = tmp_path / "rates.json"
    videos = extracted / "datasets/shapes/videos"
    run("extract", "--videos", videos, "--benchmark", "--save", rates, "--workspace", tmp_path / "ws")
    assert "encoding" in run("plan", "--rates", rates, "--videos", "1e6").stdout
