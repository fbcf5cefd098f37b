"""The gap over relevant pairs against a plain loop; figures that are whole and the same every time."""

import json

import numpy as np
import pytest
import torch
from command_line import refused, run
from PIL import Image
from retrieval_case import DIM, make_head, make_store

from dits_head.config import HeadConfig
from pipeline.errors import BadInput
from pipeline.evaluate.modality_gap import RelevantPairs, principal_plane
from pipeline.experiments.figures import means_table, steps_figure
from pipeline.retrieve.scorer import Scorer
from pipeline.stores import checkpoints
from pipeline.stores.atomic import write_json
from pipeline.stores.features import FeatureStore
from pipeline.workspace import Workspace


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    store = make_store(tmp_path_factory.mktemp("gaps") / "f", videos=300, captions=2)
    return store.videos(), store.texts()


@pytest.mark.parametrize("kind", ["xpool", "mlp", "dits"])
def test_gaps_are_those_of_each_text_and_its_own_video(toy, kind):
    videos, texts = toy
    head = make_head(kind)
    pairs = RelevantPairs.of(head, videos, texts)
    aligned = head.align_text(torch.from_numpy(texts.text_embeds)).numpy()
    scores = Scorer(head, videos).full(texts.text_embeds)
    before, after = pairs.before, pairs.after
    for i in (0, 1, 255, 256, 599):
        row = videos.video_ids.index(texts.video_ids[i])
        frames, mask = (torch.from_numpy(x[row : row + 1]) for x in (videos.frame_embeds, videos.frame_mask))
        v = head.pooling(torch.from_numpy(texts.text_embeds[i : i + 1]), frames.float(), mask)[0, 0].detach().numpy()
        for values, t in ((before, texts.text_embeds[i]), (after, aligned[i])):
            unit_delta = v / np.linalg.norm(v) - t / np.linalg.norm(t)
            expected = {
                "L2 raw": np.sqrt(((v - t) ** 2).sum()),
                "L1 raw": np.abs(v - t).sum(),
                "L2 unit": np.sqrt((unit_delta**2).sum()),
                "L1 unit": np.abs(unit_delta).sum(),
                "cosine": (v @ t) / np.linalg.norm(v) / np.linalg.norm(t),
            }
            assert {name: float(of[i]) for name, of in values.items()} == pytest.approx(expected, abs=1e-4)
        assert after["cosine"][i] == pytest.approx(scores[i, row], abs=1e-5)
    np.testing.assert_allclose(before["L2 unit"] ** 2, 2 - 2 * before["cosine"], atol=1e-5)


def test_heads_without_one_compared_text_are_refused(toy):
    with pytest.raises(BadInput, match="T-MASS"):
        RelevantPairs.of(make_head("tmass", num_frames=4), *toy)


def test_the_plane_holds_what_lies_in_a_plane():
    chance = np.random.default_rng(0)
    flat = chance.standard_normal((50, 2)) @ chance.standard_normal((2, 9)) + 5
    (a, b), parts = principal_plane(flat[:20], flat[20:])
    assert parts.sum() == pytest.approx(1)
    for i, j in ((0, 1), (3, 40)):
        both = np.concatenate([a, b])
        assert np.linalg.norm(both[i] - both[j]) == pytest.approx(np.linalg.norm(flat[i] - flat[j]))


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """Two trained heads over a toy store, as files."""
    place = Workspace(tmp_path_factory.mktemp("figures"))
    make_store(place.features_dir("toy", "toy"), videos=30)
    store = FeatureStore.open(place.features_dir("toy", "toy"))
    for kind in ("xpool", "dits", "tmass"):
        head = make_head(kind, num_frames=4)
        record = {"head": head.config.to_dict(), "encoder": store.settings, "run": kind, "selected_on": "val"}
        checkpoints.save_head(place.head_dir("toy", kind), head.state_dict(), record)
    return place


def test_the_command_draws_every_figure_and_says_what_is_missing(workspace):
    here = ("--workspace", workspace.root)
    result = run("figures", "--run", "dits", "--run", "xpool", "--against", "xpool", "--json", *here)
    assert "reproduce --table 8" in result.stderr
    drawn = json.loads(result.stdout)
    assert drawn["gaps"]["xpool"]["cosine"]["before"] == drawn["gaps"]["xpool"]["cosine"]["after"]
    folder = workspace.report_dir("toy", "figures")
    names = {
        f"dits/{name}{end}" for name in ("gap-l2", "gap-l1", "cosine", "plane", "change") for end in (".png", ".svg")
    }
    assert names <= {str(path.relative_to(folder)) for path in folder.rglob("*")}
    for path in folder.rglob("*.png"):
        colours = Image.open(path).convert("L").getcolors(256)
        assert len(colours) > 20, f"{path.name} is blank"
    assert "unit-length vectors" in (folder / "dits/gap-l2.svg").read_text()
    before = {path: path.read_bytes() for path in folder.rglob("*.svg")}
    run("figures", "--run", "dits", "--run", "xpool", "--against", "xpool", *here)
    assert {path: path.read_bytes() for path in folder.rglob("*.svg")} == before


def test_bad_runs_are_one_line(workspace):
    here = ("--workspace", workspace.root)
    assert "T-MASS" in refused("figures", "--run", "tmass", *here)
    assert "zero-shot" in refused("figures", "--run", "dits", "--against", "nope", *here)


def test_steps_are_read_from_the_table(tmp_path):
    rows = [{"row": f"T' = {n}", "R@1": 40.0 + n, "R@1 sd": 0.5} for n in (0, 1, 5)]
    write_json(tmp_path / "table-5a.json", rows)
    files = steps_figure(tmp_path / "figures", tmp_path)
    assert [path.name for path in files] == ["steps.png", "steps.svg"]
    assert "R@1, %" in files[1].read_text()


def test_the_papers_means_stand_beside_msrvtt_only():
    means = {"dits": RelevantPairs(*np.random.default_rng(0).standard_normal((3, 4, DIM))).means()}
    assert "23.76" in means_table(means, True)
    assert "23.76" not in means_table(means, False)
    assert HeadConfig().dim == 512  # the width that the paper's L1 norms belong to
