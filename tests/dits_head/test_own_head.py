"""A head from outside the package: named by module:Class or an entry point, it trains, is saved, loaded and indexed."""

import json
from importlib.metadata import EntryPoint, EntryPoints

import pytest
import torch
from retrieval_case import DIM, add_videos, make_store
from torch import Tensor, nn
from typer.testing import CliRunner

import cli
from dits_head import registry
from dits_head.aligners import Aligner
from dits_head.config import HeadConfig
from dits_head.head import HeadNeedsVideo, build_head
from pipeline.resolve import resolve_head, resolve_store
from pipeline.workspace import Workspace

NAME = f"{__name__}:LinearShift"


class LinearShift(Aligner):
    """t + W t, W zero at the start."""

    def __init__(self, config: HeadConfig) -> None:
        super().__init__(config)
        self.shift = nn.Linear(config.dim, config.dim, bias=False)
        nn.init.zeros_(self.shift.weight)

    def forward(self, text: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return text + self.shift(text)  # (N, D)


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


class PerPair(LinearShift):
    needs_video = "it looks at the frames"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    place = Workspace(tmp_path_factory.mktemp("own"))
    store = make_store(place.features_dir("toy", "toy"), videos=60, split="train")
    add_videos(store, [f"w{i}" for i in range(20)], split="val", seed=1)
    add_videos(store, [f"x{i}" for i in range(20)], split="test", seed=2)
    return place


def test_it_trains_and_every_command_takes_it(workspace):
    here = ("--json", "--workspace", workspace.root)
    trained = json.loads(run("train-head", "--head", NAME, "--lr", "1e-2", "--epochs", "2", *here).stdout)
    assert trained["head"] == NAME
    assert trained["run"].startswith("LinearShift-")
    chosen = resolve_head(workspace, resolve_store(workspace))
    assert isinstance(chosen.head.aligner, LinearShift)
    assert chosen.head.aligner.shift.weight.any()  # it has learnt, and was loaded
    assert json.loads(run("evaluate", *here).stdout)["t2v"]["gallery"] == 20
    indexed = json.loads(run("index", *here).stdout)
    assert indexed["verified"]


def test_its_score_compares_the_aligned_text():
    head = build_head(HeadConfig(head=NAME, dim=DIM)).eval()
    nn.init.normal_(head.aligner.shift.weight)
    text, frames, mask = torch.randn(5, DIM), torch.randn(7, 4, DIM), torch.ones(7, 4, dtype=torch.bool)
    aligned = text + text @ head.aligner.shift.weight.T
    pooled = head.pooling(text, frames, mask)  # (V, T, D)
    expected = torch.cosine_similarity(aligned, pooled, dim=-1).T
    torch.testing.assert_close(head.score(text, frames, mask), expected, atol=1e-6, rtol=0)


def test_one_that_needs_the_video_is_not_indexed():
    head = build_head(HeadConfig(head=f"{__name__}:PerPair", dim=DIM))
    with pytest.raises(HeadNeedsVideo, match="it looks at the frames"):
        head.align_text(torch.randn(2, DIM))


def test_an_entry_point_gives_a_head_a_short_name(monkeypatch):
    point = EntryPoint("shift", NAME, registry.ENTRY_POINTS)
    monkeypatch.setattr(registry, "entry_points", lambda **wanted: EntryPoints([point]).select(**wanted))
    assert isinstance(build_head(HeadConfig(head="shift", dim=DIM)).aligner, LinearShift)
    with pytest.raises(ValueError, match="choose one of"):
        HeadConfig(head="shove")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("nowhere:Class", "put its folder on PYTHONPATH"),
        (f"{__name__}:Gone", "cannot be imported"),
        ("json:JSONDecoder", "subclass of dits_head.aligners.Aligner"),
        (":", "cannot be imported"),
    ],
)
def test_what_is_no_head_is_refused(workspace, name, says):
    assert says in run("train-head", "--head", name, "--workspace", workspace.root, code=2).stderr
