"""Metadata of videos: types, conflicts, and what a filter makes of it."""

import os
from datetime import datetime

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import BadInput, CorruptShard
from pipeline.stores.integrity import read_json
from pipeline.stores.metadata import metadata_of, read_metadata, typed, write_metadata


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1", "-20", None], pa.int64()),
        ([1, 2.0], pa.int64()),
        (["1", "2.5"], pa.float64()),
        (["1", "1e3"], pa.float64()),
        (["007", "8"], pa.string()),  # a name that looks like a number loses nothing
        (["1_000", "2"], pa.string()),
        (["nan", "1"], pa.string()),
        (["true", "False"], pa.bool_()),
        ([True, False], pa.bool_()),
        (["2020-01-31", "2021-06-01T12:30:00"], pa.timestamp("us")),
        (["2020", "left"], pa.string()),
        ([["a"], ["b"]], pa.string()),
        ([str(2**70), "1"], pa.float64()),
    ],
)
def test_the_type_of_a_column(values, kind):
    table = typed({f"v{i}": {} if value is None else {"x": value} for i, value in enumerate(values)})
    assert table.schema.field("x").type == kind
    assert table["x"].null_count == sum(value is None for value in values)


def test_times_with_a_zone_are_compared_in_utc():
    table = typed({"a": {"t": "2020-01-01T12:00:00+02:00"}})
    assert table["t"].to_pylist() == [datetime(2020, 1, 1, 10)]


def test_rows_of_a_video_agree_or_are_refused():
    rows = [("f line 2", "a", {"path": "a", "year": "2020", "x": ""}), ("f line 3", "a", {"path": "a", "Year": "1"})]
    assert metadata_of(rows, ("path",)) == {"a": {"year": "2020", "Year": "1"}}
    with pytest.raises(BadInput, match="line 3: column 'year' of video 'a' differs"):
        metadata_of([rows[0], ("f line 3", "a", {"year": "2021"})], ())
    with pytest.raises(BadInput, match="'__row' cannot be metadata"):
        metadata_of([("f line 2", "a", {"__row": "1"})], ())


def test_what_is_written_again_replaces_and_the_rest_stays(tmp_path):
    assert read_metadata(tmp_path) is None
    write_metadata(tmp_path, {})
    assert read_metadata(tmp_path) is None
    write_metadata(tmp_path, {"a": {"year": "2020", "camera": "left"}, "b": {"year": "2021"}})
    write_metadata(tmp_path, {"a": {"year": "2019"}, "c": {"camera": "right"}})
    table = read_metadata(tmp_path)
    assert table.sort_by("video_id").to_pylist() == [
        {"video_id": "a", "camera": "left", "year": 2019},
        {"video_id": "b", "camera": None, "year": 2021},
        {"video_id": "c", "camera": "right", "year": None},
    ]


def test_a_changed_table_is_refused(tmp_path):
    path = tmp_path / "metadata.parquet"
    write_metadata(tmp_path, {"a": {"x": 1}})
    foreign = typed({"a": {"x": 3}})
    pq.write_table(foreign, path, write_page_checksum=True)
    with pytest.raises(CorruptShard, match=r"metadata\.parquet was changed after it was written"):
        read_metadata(tmp_path)
    (tmp_path / "metadata.json").unlink()  # as in a store of an older version
    assert read_metadata(tmp_path) == foreign


def test_a_write_killed_between_seal_and_table_leaves_the_old_table(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def replace(source, target, true=os.replace):
        if target.name == "metadata.parquet":
            raise Killed
        true(source, target)

    write_metadata(tmp_path, {"a": {"x": 1}})
    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", replace)
        with pytest.raises(Killed):
            write_metadata(tmp_path, {"a": {"x": 2}})
    assert len(read_json(tmp_path / "metadata.json")["tables"]) == 2
    assert read_metadata(tmp_path).to_pylist() == [{"video_id": "a", "x": 1}]
    write_metadata(tmp_path, {"a": {"x": 2}})
    assert read_metadata(tmp_path).to_pylist() == [{"video_id": "a", "x": 2}]
