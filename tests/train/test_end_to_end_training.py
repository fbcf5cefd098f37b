"""All of CLIP trained from the video files: the pixels of stage 1, a run through every command, errors with a name."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from table_runs import InProcess
from typer.testing import CliRunner

import cli
from dits_head.config import HEADS
from pipeline.clip.encoder import load_encoder
from pipeline.datasets.manifests import dataset_manifest
from pipeline.errors import BadInput, UserError
from pipeline.experiments import runs
from pipeline.experiments.reproduce import reproduce, tables_dir
from pipeline.experiments.tables import SYSTEMS, TABLES
from pipeline.extract.cache_size import cache_bytes
from pipeline.extract.corpus import extract_manifest
from pipeline.extract.settings import ExtractSettings
from pipeline.resolve import ZERO_SHOT, resolve_head, resolve_store
from pipeline.stores.atomic import write_json
from pipeline.stores.features import FeatureStore
from pipeline.stores.integrity import read_json
from pipeline.train import finetune as tune
from pipeline.train import joint_batches, trainable_clip
from pipeline.train.batches import PairData
from pipeline.train.joint_batches import JointSource, embed_texts, embed_videos
from pipeline.train.recipe import recipe
from pipeline.train.trainable_clip import CachedTopBlocks, DecodedWholeClip, clips_of
from pipeline.workspace import Workspace

CPU = torch.device("cpu")
SIZES = {"train": 8, "val": 2, "test": 6}


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """shapes, tiny, with what enters the top two blocks."""
    root = tmp_path_factory.mktemp("end-to-end")
    manifest = dataset_manifest(Workspace(root), "shapes", None, None, None, SIZES)
    settings = ExtractSettings(cache_blocks=2, precision="float32")
    extract_manifest(Workspace(root), manifest, settings)
    return root


@pytest.fixture
def workspace(extracted, tmp_path):
    """A copy that a test may change; its manifest leads to the videos of the first."""
    return shutil.copytree(extracted, tmp_path / "workspace", ignore=shutil.ignore_patterns("videos"))


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def test_an_untouched_clip_gives_the_embeddings_of_the_store(extracted):
    chosen = resolve_store(Workspace(extracted))
    clip = DecodedWholeClip(Workspace(extracted), chosen)
    videos, texts = chosen.store.videos(), chosen.store.texts()
    inputs = clip.inputs(videos, texts)
    with torch.no_grad():
        frames, embeds = (
            embed(clip.towers, inputs, np.arange(count), CPU)
            for embed, count in ((embed_videos, len(videos)), (embed_texts, 20))
        )
    stored = videos.frame_embeds.astype(np.float32)
    assert np.abs(frames.astype(np.float32) - stored).max() <= 2**-10 * np.abs(stored).max()
    assert np.abs(embeds - texts.text_embeds[:20]).max() <= 1e-5 * np.abs(texts.text_embeds).max()


def test_batches_hold_the_pairs_asked_for_and_every_block_gets_a_gradient(extracted):
    chosen = resolve_store(Workspace(extracted))
    clip = DecodedWholeClip(Workspace(extracted), chosen)
    videos, texts = chosen.store.videos("train"), chosen.store.texts("train")
    source = JointSource(PairData.of(videos, texts), clip.inputs(videos, texts), CPU)
    rows = [np.array([5, 4, 20, 31]), np.array([0, 5])]  # 5 and 4: two captions of one video
    for pairs, batch in zip(rows, source.batches(rows), strict=True):
        frames = clip.towers.frame_embeds(batch["frame_inputs"])
        embeds = clip.towers.text_embeds(batch["text_inputs"], batch["text_lengths"])
        stored = torch.from_numpy(videos.frame_embeds[[videos.video_ids.index(texts.video_ids[row]) for row in pairs]])
        torch.testing.assert_close(frames, stored.float(), atol=2**-10 * float(stored.abs().max()), rtol=0)
        torch.testing.assert_close(embeds, torch.from_numpy(texts.text_embeds[pairs]), atol=1e-4, rtol=1e-4)
        assert torch.equal(batch["frame_mask"], torch.ones(len(pairs), 12, dtype=torch.bool))
    (frames.sum() + embeds.sum()).backward()
    without = [name for name, p in clip.towers.named_parameters() if p.requires_grad and p.grad is None]
    assert without == []


def test_levels_hold_every_trainable_parameter_below_the_top_once(extracted):
    towers = DecodedWholeClip(Workspace(extracted), resolve_store(Workspace(extracted))).towers
    levels = towers.levels()
    held = [parameter for level in levels for parameter in level.parameters()]
    assert len(levels) == 1 + 4
    assert len({id(parameter) for parameter in held}) == len(held)
    names = {id(parameter): name for name, parameter in towers.named_parameters()}
    assert "model.token_embedding.weight" in {names[id(parameter)] for parameter in levels[0].parameters()}
    above = {name for number, name in names.items() if number not in {id(parameter) for parameter in held}}
    assert above == {
        f"model.{name}"
        for name in (
            *("visual.ln_post.weight", "visual.ln_post.bias", "visual.proj"),
            *("ln_final.weight", "ln_final.bias", "text_projection", "logit_scale"),
        )
    }


def test_a_run_from_the_videos_and_every_command_after_it(workspace, extracted, tmp_path):
    here = ("--workspace", workspace)
    tuning = ("--end-to-end", "--clip-lr", "1e-3", "--epochs", 1, "--layer-decay", 0.8, "--low-memory")
    trained = json.loads(run("train-head", "--head", "xpool", *tuning, "--run", "whole", "--json", *here).stdout)
    assert (trained["run"], trained["head"]) == ("whole", "xpool")
    evaluation = json.loads(run("evaluate", "--json", *here).stdout)
    assert evaluation["protocol"]["run"] == "whole"
    assert evaluation["protocol"]["encoder"]["pretrained"] == "clip.safetensors"
    assert evaluation["t2v"]["gallery"] == SIZES["test"]
    run("index", *here)
    assert len(json.loads(run("search", "a red ring", "--top", 3, "--json", *here).stdout)["queries"][0]["hits"]) == 3

    # the tuned head and the features of the original CLIP do not mix
    mixed = run("evaluate", "--run", "whole", "--encoder", "shapes-clip", *here, code=2)
    assert "weights_sha256" in mixed.stderr

    # every part of CLIP has moved, and a new corpus is embedded with what it has become
    out = tmp_path / "tuned.safetensors"
    run("export-clip", "whole", out, *here)
    before, after = load_encoder(precision="float32").model.state_dict(), load_file(out)
    still = {name for name in before if torch.equal(before[name], after[name])}
    assert still <= {"logit_scale", "attn_mask"}
    new = tmp_path / "new"
    new.mkdir()
    shutil.copy(next((extracted / "datasets/shapes").rglob("test-00000.mp4")), new / "one.mp4")
    added = json.loads(run("reindex", "--corpus", new, "--json", *here).stdout)
    assert (added["added"], added["total"]) == (1, sum(SIZES.values()) + 1)
    run("extract", "--videos", new, "--pretrained", out, "--precision", "float32", "--workspace", tmp_path / "other")
    alone = resolve_store(Workspace(tmp_path / "other")).store.videos()
    tuned = resolve_store(Workspace(workspace), "shapes", "shapes-clip+whole").store.videos()
    assert np.array_equal(alone.frame_embeds[0], tuned.frame_embeds[tuned.video_ids.index("test-00000")])


def test_killed_in_mid_run_it_ends_with_the_same_weights(workspace, tmp_path):
    other = shutil.copytree(workspace, tmp_path / "other")
    options = ("--head", "mean-pool", "--end-to-end", "--clip-lr", "1e-3", "--epochs", "2", "--run", "r")
    run("train-head", *options, "--workspace", workspace)
    child = subprocess.Popen(
        [sys.executable, "cli.py", "train-head", *options, "--workspace", str(other)],
        cwd=Path(cli.__file__).parent,
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (other / "heads/shapes/r/resume.json").exists() and time.monotonic() < deadline:
        time.sleep(0.001)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    run("train-head", *options, "--workspace", other)
    whole, resumed = (load_file(place / "heads/shapes/r/clip.safetensors") for place in (workspace, other))
    assert [name for name in whole if not torch.equal(whole[name], resumed[name])] == []


def test_videos_that_are_gone_or_changed_are_named(extracted, tmp_path):
    root = shutil.copytree(extracted, tmp_path / "workspace")
    manifest = dataset_manifest(Workspace(root), "shapes", None, None, None, SIZES)
    extract_manifest(Workspace(root), manifest, ExtractSettings(cache_blocks=2, precision="float32"))
    clip = next((root / "datasets/shapes").rglob("train-00003.mp4"))
    whole = clip.read_bytes()
    chosen = resolve_store(Workspace(root))
    videos, texts = chosen.store.videos(), chosen.store.texts()
    rows = [np.arange(len(videos))]
    clip.write_bytes(b"no video any more")
    inputs = DecodedWholeClip(Workspace(root), chosen).inputs(videos, texts)
    with pytest.raises(BadInput, match=r"train-00003\.mp4 cannot be decoded any more"):
        next(inputs.frame_inputs(rows))
    clip.unlink()
    line = run("train-head", "--end-to-end", "--workspace", root, code=2).stderr
    assert str(clip) in line
    assert "Traceback" not in line
    clip.write_bytes(whole)
    assert next(inputs.frame_inputs(rows)).shape == (len(videos), 12, 64, 64, 3)


def test_blocks_and_end_to_end_at_once_are_refused(workspace):
    line = run("train-head", "--end-to-end", "--train-blocks", 2, "--workspace", workspace, code=2).stderr
    assert "exclude each other" in line


@pytest.mark.parametrize("head", HEADS)
def test_every_head_trains_with_blocks(workspace, head):
    small = ("--set", "blocks=1", "--set", "T=2") if head in ("dits", "diffusion") else ()
    options = ("--head", head, *small, "--train-blocks", 1, "--clip-lr", "1e-3", "--epochs", 1, "--run", "r")
    run("train-head", *options, "--workspace", workspace)
    assert resolve_store(Workspace(workspace)).encoder == "shapes-clip+r"
    assert json.loads(run("evaluate", "--json", "--workspace", workspace).stdout)["protocol"]["run"] == "r"


def test_a_store_in_half_precision_is_tuned_in_full(tmp_path):
    manifest = dataset_manifest(Workspace(tmp_path), "shapes", None, None, None, SIZES)
    settings = ExtractSettings(cache_blocks=1, precision="bfloat16")
    extract_manifest(Workspace(tmp_path), manifest, settings)
    for run_name, how in (("top", ("--train-blocks", 1)), ("whole", ("--end-to-end",))):
        options = ("--head", "mean-pool", *how, "--epochs", 1, "--run", run_name, "--encoder", "shapes-clip")
        run("train-head", *options, "--workspace", tmp_path)
        assert resolve_store(Workspace(tmp_path)).store.settings["dtype"] == "float32"
        run("index", "--workspace", tmp_path)
        run("search", "a red ring", "--workspace", tmp_path)


def test_windows_of_long_captions_are_refused(tmp_path):
    manifest = dataset_manifest(Workspace(tmp_path), "shapes", None, None, None, SIZES)
    extract_manifest(Workspace(tmp_path), manifest, ExtractSettings(long_captions="windows"))
    with pytest.raises(UserError, match="one text a caption"):
        DecodedWholeClip(Workspace(tmp_path), resolve_store(Workspace(tmp_path)))


@pytest.mark.parametrize("make", [CachedTopBlocks, DecodedWholeClip])
def test_a_publication_that_was_killed_is_finished_with_the_same_shards(workspace, tmp_path, monkeypatch, make):
    """Killed between two shards of videos, and between videos and captions; never a shard twice, none left out."""
    chosen = resolve_store(Workspace(workspace))
    clip = make(chosen, 1) if make is CachedTopBlocks else make(Workspace(workspace), chosen)
    write_videos, write_texts, writes = FeatureStore.write_videos, FeatureStore.write_texts, []

    def killed_later(write, *arguments, **named):
        if len(writes) in (1, 3):
            writes.append("killed")
            raise KeyboardInterrupt
        writes.append(write.__name__)
        return write(*arguments, **named)

    monkeypatch.setattr(trainable_clip, "VIDEO_SHARD", 10)
    monkeypatch.setattr(trainable_clip, "TEXT_SHARD", 40)
    monkeypatch.setattr(FeatureStore, "write_videos", lambda *a, **k: killed_later(write_videos, *a, **k))
    monkeypatch.setattr(FeatureStore, "write_texts", lambda *a, **k: killed_later(write_texts, *a, **k))
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            clip.publish(tmp_path / "tuned", tmp_path / "clip.safetensors")
    clip.publish(tmp_path / "tuned", tmp_path / "clip.safetensors")
    tuned, base = FeatureStore.open(tmp_path / "tuned"), chosen.store
    assert writes[:5] == ["write_videos", "killed", "write_videos", "killed", "write_texts"]
    assert [len(tuned.shard_paths(kind)) for kind in ("videos", "texts")] == [2, -(-len(base.texts()) // 40)]
    assert tuned.texts().caption_ids == base.texts().caption_ids
    assert tuned.texts().captions == base.texts().captions
    for name in ("video_ids", "paths", "splits"):
        assert getattr(tuned.videos(), name) == getattr(base.videos(), name)
    np.testing.assert_array_equal(tuned.videos().frame_pts, base.videos().frame_pts)
    np.testing.assert_allclose(tuned.videos().frame_embeds, base.videos().frame_embeds, atol=1e-2)
    np.testing.assert_allclose(tuned.texts().text_embeds, base.texts().text_embeds, atol=1e-2)


def test_shards_do_not_change_what_is_published(workspace, tmp_path, monkeypatch):
    chosen = resolve_store(Workspace(workspace))
    monkeypatch.setattr(joint_batches, "VIDEO_BATCH", 4)
    for name, shard in (("one", 100), ("several", 8)):
        monkeypatch.setattr(trainable_clip, "VIDEO_SHARD", shard)
        CachedTopBlocks(chosen, 1).publish(tmp_path / name, tmp_path / f"{name}.safetensors")
    one, several = (FeatureStore.open(tmp_path / name).videos() for name in ("one", "several"))
    assert np.array_equal(one.frame_embeds, several.frame_embeds)


def test_clips_are_decoded_with_the_limits_that_they_were_extracted_with(workspace):
    place = Workspace(workspace)
    chosen = resolve_store(place)
    about = read_json(chosen.store.path / "encoder.json")
    write_json(chosen.store.path / "encoder.json", {**about, "limits": {**about["limits"], "max_pixels": 16}})
    clip = DecodedWholeClip(place, chosen)
    with pytest.raises(BadInput, match="TooManyPixels"):
        next(clip.inputs(chosen.store.videos(), chosen.store.texts()).frame_inputs([np.array([0])]))


def test_tables_run_systems_whose_clip_is_trained_too(workspace):
    place = Workspace(workspace)
    chosen = resolve_store(place)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runs, "ProcessPoolExecutor", InProcess)
        patch.setattr(tune, "depth", lambda model: 2)  # of the four blocks two are cached here
        for name in [row.system for row in TABLES["blocks"].rows]:
            patch.setitem(SYSTEMS, name, replace(SYSTEMS[name], head={"head": "mean-pool"}))  # the quickest
        settings = recipe(chosen, epochs=1, batch_size=16)
        written = reproduce(place, chosen, ["blocks", "5b"], settings, head={}, seeds=1, jobs=1)
    folder = tables_dir(place, chosen)
    rows = {row["row"]: row for row in read_json(folder / "table-blocks.json")}
    assert list(rows) == ["fix CLIP", "k = 1", "k = 2", "all blocks", "end to end"]
    assert [row["row"] for row in read_json(folder / "table-5b.json")] == ["DITS, fix CLIP", "DITS, joint"]
    videos, texts = chosen.store.videos(), chosen.store.texts()
    features = videos.frame_embeds.nbytes + texts.text_embeds.nbytes
    manifest = clips_of(place, chosen)
    assert rows["fix CLIP"]["disk MB"] == round(features / 1e6, 2)
    encoder = load_encoder(precision="float32")
    cached = cache_bytes(encoder, manifest, 12, "float16")
    assert rows["k = 1"]["disk MB"] == rows["all blocks"]["disk MB"] == round((features + cached) / 1e6, 2)
    files = sum(Path(manifest.resolve(entry)).stat().st_size for entry in manifest.entries)
    assert rows["end to end"]["disk MB"] == round(files / 1e6, 2)
    assert all(row["s an epoch"] > 0 for name, row in rows.items() if name != "fix CLIP")  # mean pooling takes none
    assert "s an epoch" in written["blocks"]
    # the tables do not change what later commands take
    assert resolve_store(place).encoder == "shapes-clip"
    assert resolve_head(place, chosen).run == ZERO_SHOT
