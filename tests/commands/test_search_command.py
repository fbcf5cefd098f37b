"""`search` and `duplicates` on real clips: what is asked for in each way, and what is printed."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from clip_maker import make_clip
from command_line import refused, run
from PIL import Image
from typer.testing import CliRunner

import cli
from pipeline.stores.metadata import read_metadata


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """A workspace of six own clips, one of them a copy, with metadata; and the folder of the clips."""
    folder = tmp_path_factory.mktemp("own")
    clips = folder / "clips"
    clips.mkdir()
    for number in range(5):
        make_clip(clips / f"c{number}.mp4", 10 + 7 * number)
    shutil.copy(clips / "c1.mp4", clips / "<b>copy & paste.mp4")
    rows = "\n".join(f'"c{n}.mp4",a clip of number {n},{2018 + n},{"left" if n % 2 else "right"}' for n in range(5))
    (folder / "captions.csv").write_text(f"video_id,caption,year,camera\n{rows}\n")
    here = ("--workspace", folder / "w")
    run("extract", "--videos", clips, "--captions", folder / "captions.csv", "--num-frames", 4, "--workers", 1, *here)
    run("index", *here)
    return folder


def hits(indexed, *arguments):
    found = json.loads(run("search", *arguments, "--json", "--workspace", indexed / "w").stdout)
    assert set(found) == {"queries"}
    return found["queries"]


def names(answer):
    return [hit["path"].rsplit("/", 1)[-1] for hit in answer["hits"]]


def test_an_index_can_be_handed_over(indexed, tmp_path):
    from pipeline import Retriever

    out = tmp_path / "vectors.parquet"
    result = json.loads(run("index", "--export", out, "--json", "--workspace", indexed / "w").stdout)
    table = pq.read_table(out)
    assert (result["rows"], table.column_names) == (len(table), ["video_id", "path", "vector"])
    assert len(set(table["video_id"].to_pylist())) == 6
    vectors = np.stack(table["vector"].to_numpy(zero_copy_only=False)).astype(np.float32)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-2)
    with Retriever.open(indexed / "w") as retriever:
        (hits_,) = retriever.search(["a clip"], top=1)
    assert hits_[0].path in table["path"].to_pylist()
    refused("index", "--export", out, "--factory", "Flat", "--workspace", indexed / "w")


def test_metadata_of_the_captions_file_filters(indexed):
    store = next((indexed / "w/features").glob("*/*"))
    assert {f.name: str(f.type) for f in read_metadata(store).schema} == {
        "video_id": "string", "camera": "string", "year": "int64",
    }  # fmt: skip
    (answer,) = hits(indexed, "a clip", "--where", "year >= 2019 AND camera = 'left'")
    assert sorted(names(answer)) == ["c1.mp4", "c3.mp4"]
    line = refused("search", "a clip", "--where", "read_text('/etc/passwd') = ''", "--workspace", indexed / "w")
    assert "year (int64)" in line
    assert hits(indexed, "a clip", "--where", "year > 3000")[0]["hits"] == []


def test_each_kind_of_query(indexed, tmp_path):
    both = hits(indexed, "a red ring", "a blue star", "--top", 2)
    assert [answer["query"] for answer in both] == ["a red ring", "a blue star"]
    assert [len(answer["hits"]) for answer in both] == [2, 2]
    (mean,) = hits(indexed, "a red ring", "a blue star", "--average", "--not", "a green box")
    assert mean["query"] == "a red ring + a blue star - a green box"
    assert len(mean["hits"]) == 6
    (like,) = hits(indexed, "--like", "c1.mp4")
    assert names(like)[0] == "<b>copy & paste.mp4"
    assert "c1.mp4" not in names(like)
    (file,) = hits(indexed, "--like", indexed / "clips/c1.mp4")  # a file, not an id
    assert set(names(file)[:2]) == {"c1.mp4", "<b>copy & paste.mp4"}
    assert file["hits"][0]["score"] == pytest.approx(1.0, abs=1e-3)
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "still.png")
    (picture,) = hits(indexed, "--image", tmp_path / "still.png", "--top", 3)
    assert all(0 <= hit["moment"] < 10 for hit in picture["hits"])


def test_an_index_on_disk_leaves_stdout_to_the_answer(indexed, tmp_path):
    """FAISS writes to the file descriptor, so a real process is asked."""
    place = shutil.copytree(indexed / "w", tmp_path / "w")
    cli_file = Path(__file__).resolve().parents[2] / "cli.py"

    def answer(*arguments):
        command = [sys.executable, str(cli_file), *arguments, "--json", "--workspace", str(place)]
        return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert answer("index", "--factory", "IVF2,Flat", "--search", "nprobe=2", "--on-disk")["total"] == 6
    assert next(place.rglob("index.ivfdata")).stat().st_size > 0
    assert len(answer("search", "a red ring")["queries"][0]["hits"]) == 6


def test_people_read_score_path_and_moment(indexed):
    lines = run("search", "a red ring", "--top", 2, "--workspace", indexed / "w").stdout.splitlines()
    assert len(lines) == 2
    assert all(line.split("  ")[2].startswith("at 0:0") for line in lines)


def test_lines_of_stdin_are_answered_line_by_line(indexed):
    arguments = ["search", "-", "--top", "1", "--workspace", str(indexed / "w")]
    result = CliRunner().invoke(cli.app, arguments, input="a red ring\n\na blue star\n")
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(answer) for answer in answers] == [{"query", "hits"}, {"query", "error"}, {"query", "hits"}]
    assert answers[1]["error"].startswith("an empty query")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "SENTENCE"),
        (("a dog", "--image", "x.png"), "exclude"),
        (("--image", "x.png", "--not", "a cat"), "go with sentences"),
        (("-", "--average"), "--average"),
        (("--image", "absent.png"), "no picture absent.png"),
        (("--like", "nobody"), "neither an indexed video nor a file"),
        (("a dog", "--per-file", "0"), "--per-file"),
        ((" ",), "empty query"),
    ],
)
def test_bad_queries_are_one_line(indexed, arguments, said):
    assert said in refused("search", *arguments, "--workspace", indexed / "w")


def test_pictures_are_bounded_before_they_are_decoded(indexed, tmp_path):
    bomb, text = tmp_path / "bomb.png", tmp_path / "text.png"
    Image.new("1", (9_000, 8_000)).save(bomb)
    text.write_text("%!PS no picture")
    assert bomb.stat().st_size < 100_000
    assert "expected at most 50000000 pixels; got 9000 x 8000" in refused(
        "search", "--image", bomb, "--workspace", indexed / "w"
    )
    assert "cannot be read as a picture" in refused("search", "--image", text, "--workspace", indexed / "w")


def test_duplicates_are_a_table_and_a_page(indexed, tmp_path):
    where = ("--workspace", indexed / "w")
    found = json.loads(run("duplicates", "--threshold", 0.9999, "--json", *where).stdout)
    table = (indexed / "w/reports/clips/duplicates/duplicates.csv").read_text().splitlines()
    assert (found["table"], found["of"]) == (str(indexed / "w/reports/clips/duplicates/duplicates.csv"), 6)
    assert table[0] == '"group","keep","video_id","path","start","end","cosine","bytes"'
    group = [line for line in table[1:] if "c1.mp4" in line or "copy" in line]
    assert len(group) == 2
    assert len({line.split(",")[0] for line in group}) == 1
    page = (indexed / "w/reports/clips/duplicates/duplicates.html").read_text()
    assert "&lt;b&gt;copy &amp; paste.mp4" in page
    assert "<b>copy" not in page
    assert page.count("data:image/jpeg;base64,") == found["videos"]
    run("duplicates", "--threshold", 0.9999, "--out", tmp_path / "d.parquet", *where)
    assert (tmp_path / "d.html").exists()
    assert "unknown kind of table" in refused("duplicates", "--out", tmp_path / "d.xlsx", *where)
    assert "--threshold" in refused("duplicates", "--threshold", 2, *where)


def test_an_example_runs(indexed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["search.py", str(indexed / "w"), "a red ring"])
    import runpy

    runpy.run_path("docs/examples/search.py", run_name="__main__")
    assert len(capsys.readouterr().out.splitlines()) == 6
