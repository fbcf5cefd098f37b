"""A bad value is refused before torch loads; options and their checks follow the rooms' constants; --config."""

import json
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from command_line import refused, run

from pipeline.commands import options
from pipeline.evaluate.metrics import TIES
from pipeline.extract.settings import DECODERS, LONG_CAPTIONS
from pipeline.stores.activations import DTYPES
from pipeline.stores.shards import SUFFIXES
from pipeline.train.precision import PRECISIONS
from pipeline.video.sampling import RULES

ROOT = Path(__file__).parents[2]
BAD = [
    ["train-head", "--head", "bogus"],
    ["train-head", "--set", "nope=1"],
    ["train-head", "--precision", "float16"],
    ["extract", "--decoder", "bogus"],
    ["extract", "--format", "bogus"],
    ["extract", "--preset", "bogus"],
    ["extract", "--num-frames", "99999999999"],
    ["extract", "--wait", "nan"],
    ["extract", "--split", "every:x"],
    ["extract", "--split", "scenes:bogus"],
    ["extract", "--max-clip", "20"],
    ["extract", "--shard", "4/4"],
    ["extract", "--shard", "auto"],
    ["extract", "--shard", "0/4", "--finish"],
    ["extract", "--engine", "bogus"],
    ["extract", "--actors", "2"],
    ["evaluate", "--ties", "bogus"],
    ["reproduce", "--table", "bogus"],
    ["reproduce", "--tune", "bogus"],
    ["bogus"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_a_bad_value_is_one_line_and_loads_no_torch(arguments, tmp_path):
    code = (
        "import sys, atexit; atexit.register(lambda: print('torch' in sys.modules, file=sys.stderr));"
        "import cli; sys.argv = ['cli.py', *sys.argv[1:]]; cli.app()"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=ROOT, env={"DITS_WORKSPACE": str(tmp_path)}, capture_output=True, text=True)
    *lines, loaded = done.stderr.splitlines()
    assert done.returncode == 2
    assert done.stdout == ""
    assert len(lines) == 1
    assert lines[0].startswith("error: ")
    assert loaded == "False"
    assert list(tmp_path.iterdir()) == []


def test_choices_are_those_of_the_rooms():
    assert set(get_args(options.Decoder)) == set(DECODERS)
    assert set(get_args(options.LongCaptions)) == set(LONG_CAPTIONS)
    assert set(get_args(options.ShardFormat)) == set(SUFFIXES)
    assert set(get_args(options.TokenDtype)) == set(DTYPES)
    assert set(get_args(options.TrainPrecision)) == set(PRECISIONS)
    assert set(get_args(options.Sampling)) == set(RULES)
    assert set(get_args(options.Ties)) == {*TIES, "expected"}


def test_errors_with_json_are_one_object(tmp_path):
    result = run("search", "a dog", "--json", "--workspace", tmp_path, code=2)
    assert result.stdout == ""
    error = json.loads(result.stderr.splitlines()[-1])
    assert error["exit_code"] == 2
    assert "no index" in error["message"]


@pytest.mark.parametrize("place", ["s3://key:secret@bucket/prefix", "http://host/a", "x" * 300, "a/" * 3000])
def test_a_workspace_that_cannot_be_is_refused(place):
    assert "workspace" in refused("search", "a dog", "--workspace", place)


def test_a_file_gives_options_and_the_command_line_wins(extracted, tmp_path):
    (tmp_path / "train.yaml").write_text("head: xpool\nepochs: 2\nset: {dropout: 0.1}\nlr: 0.001\n")
    here = ("--workspace", extracted, "--json")
    run_name = json.loads(run("train-head", "--config", tmp_path / "train.yaml", "--epochs", 1, *here).stdout)["run"]
    (folder,) = Path(extracted).glob(f"heads/*/{run_name}")
    record = json.loads((folder / "config.json").read_text())
    assert record["head"]["head"] == "xpool"
    assert record["head"]["dropout"] == 0.1
    assert (record["settings"]["epochs"], record["settings"]["lr"]) == (1, 0.001)
    again = json.loads(run("train-head", "--config", folder / "train.yaml", *here).stdout)
    assert again["run"] == run_name, "the kept settings repeat the command"


@pytest.mark.parametrize("text", ["hed: xpool\n", "- a\n", "epochs: many\n", ": {\n"])
def test_a_file_that_is_wrong_is_one_line(text, tmp_path):
    (tmp_path / "train.yaml").write_text(text)
    refused("train-head", "--config", tmp_path / "train.yaml", "--workspace", tmp_path)
