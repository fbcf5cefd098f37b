"""`extract` in parts and by Ray, as a user types it."""

import importlib.util
import json
import shlex

from command_line import refused, run

SHAPES = ("--dataset", "shapes", "--option", "train=2", "--option", "val=1", "--option", "test=1", "--workers", "1")


def test_what_finish_prints_makes_the_missing_shards(tmp_path):
    place = ("--workspace", tmp_path)
    run("extract", *SHAPES, "--shard-size", "2", *place, "--shard", "1/3")
    message = refused("extract", *SHAPES, "--shard-size", "2", *place, "--finish")
    assert "2 of 3 shards are missing" in message
    commands = [text for text in message.split("`") if text.startswith("python cli.py ")]
    assert len(commands) == 2
    for command in commands:
        run(*shlex.split(command)[2:])
    result = run("extract", *SHAPES, "--shard-size", "2", *place, "--finish", "--json")
    assert json.loads(result.stdout)["done"] == 4
    assert json.loads(run("extract", *SHAPES, *place, "--json").stdout)["done"] == 4  # a plain run goes on from it


def test_without_ray_one_line_says_what_to_install(monkeypatch, tmp_path):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "ray" else real(name, *more))
    assert "dits-retrieval[ray]" in refused("extract", *SHAPES, "--workspace", tmp_path, "--engine", "ray")
    assert list(tmp_path.iterdir()) == []
