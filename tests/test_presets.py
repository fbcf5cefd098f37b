"""The presets are the paper's recipes: the stages take their settings, and their numbers are the published ones."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dits_head.config import HeadConfig
from pipeline import presets
from pipeline.datasets import DATASETS, annotate, build_manifest, find_source
from pipeline.errors import BadInput
from pipeline.experiments.runs import system_settings
from pipeline.experiments.tables import TABLES
from pipeline.presets import PRESETS, get_preset
from pipeline.train.loop import TrainSettings
from pipeline.train.recipe import head_config, recipe

PAPER = Path(__file__).resolve().parents[2] / "shared" / "PAPER.md"
TITLES = {"MSR-VTT 1k-A": "msrvtt", "LSMDC": "lsmdc", "DiDeMo": "didemo", "VATEX": "vatex", "Charades": "charades"}
COLUMNS = [("b32", "X-Pool"), ("b32", "T-MASS"), ("b32", "DITS"), ("b16", "X-Pool"), ("b16", "DITS")]


TODAY = ("pe-t", "pe-s", "pe-b", "pe-l", "pe-g", "siglip2-b", "siglip2-so400m", "mobileclip2")


def test_every_data_set_of_the_paper_has_both_backbones_and_those_of_today():
    backbones = ("b32", "b16", *TODAY)
    assert set(PRESETS) == {f"{name}-{backbone}" for name in TITLES.values() for backbone in backbones} | {
        "shapes",
        "shapes-hard",
    }


@pytest.mark.parametrize("backbone", TODAY)
def test_todays_backbones_are_open_clips_with_their_size_width_and_tag(backbone):
    from pipeline.clip import torchvision_guard

    torchvision_guard.ensure()
    import open_clip

    preset = get_preset(f"msrvtt-{backbone}")
    config = open_clip.get_model_config(preset.model)
    assert (config["embed_dim"], config["vision_cfg"]["image_size"]) == (preset.embed_dim, preset.pixels)
    assert preset.pretrained in open_clip.list_pretrained_tags_by_model(preset.model)
    assert (preset.num_frames, preset.sampling) == (8, "ends")


def test_a_preset_of_today_says_its_frames_and_what_a_head_must_beat():
    text = get_preset("msrvtt-pe-l").describe()
    assert "--model PE-Core-L-14-336 --pretrained meta --num-frames 8 --sampling ends" in text
    assert "zero-shot, published: R@1 50.3" in text
    assert "a head should reach 53.3" in text
    assert "cut at 32 tokens" in text
    assert "no published zero-shot figure" in get_preset("vatex-pe-l").describe()


@pytest.mark.parametrize("name", PRESETS)
def test_settings_are_ones_that_the_stages_take(name, tmp_path):
    preset = get_preset(name)
    assert preset.name == name
    assert preset.dataset in DATASETS
    config = HeadConfig.from_dict({"dim": preset.embed_dim, **preset.head})
    assert config.steps == (5 if preset.dataset == "didemo" else 10)
    settings = TrainSettings(**preset.train)
    small = {"lsmdc": 1e-5, "didemo": 1e-5, "vatex": 1e-5, "charades": 1e-5}
    assert settings.lr == ({"shapes": 3e-3, "shapes-hard": 3e-3, "msrvtt": 3e-5} | small)[preset.dataset]
    if not DATASETS[preset.dataset].built_in:
        with pytest.raises(Exception, match="is not complete"):  # the options are known, only the files are missing
            annotate(find_source(preset.dataset, None, None, tmp_path), **preset.dataset_options)


def test_the_published_numbers_are_those_of_the_paper():
    if not PAPER.is_file():
        pytest.skip(f"the table of the paper is not at {PAPER}")
    rows = re.findall(r"^\| ([^|]+?) \|(.*)\|$", PAPER.read_text(), re.MULTILINE)
    checked = 0
    for title, cells in rows:
        for (backbone, system), cell in zip(COLUMNS, cells.split("|") if title in TITLES else (), strict=False):
            reached = get_preset(f"{TITLES[title]}-{backbone}").paper[system]
            published = tuple(float(number) for number in cell.split())
            assert (reached.r1, reached.r5, reached.r10, reached.mdr, reached.mnr) == published
            checked += 1
    assert checked == sum(len(preset.paper) for preset in PRESETS.values()) == 25


def test_sizes_follow_from_the_published_splits(tmp_path):
    from pipeline.datasets import charades, didemo, lsmdc, msrvtt, vatex

    def total(published):
        return sum(split.count for split in published.values())

    assert get_preset("charades-b32").videos == total(charades.PUBLISHED)
    assert get_preset("didemo-b32").videos == total(didemo.PUBLISHED)
    assert get_preset("lsmdc-b32").videos == total(lsmdc.PUBLISHED)
    assert get_preset("vatex-b32").videos == total(vatex.PUBLISHED)
    assert get_preset("msrvtt-b32").videos == msrvtt.TRAIN_9K.count + msrvtt.TEST_1KA.count
    shapes = build_manifest("shapes", dataset_dir=tmp_path, train=4, val=2, test=4, workers=1)
    per_video = sum(len(entry.captions) for entry in shapes.entries) / len(shapes.entries)
    assert get_preset("shapes").captions == per_video * get_preset("shapes").videos


def test_a_description_says_how_what_it_costs_and_what_was_reached():
    text = get_preset("didemo-b16").describe()
    assert "extract --dataset didemo --model ViT-B-16 --pretrained openai" in text
    assert "T_prime=5" in text
    assert "10,428 videos decoded once, 125,136 frames" in text
    assert presets.PAPER_COST in text
    assert "DITS: R@1 55.8  R@5 80.5  R@10 87.5  MdR 1  MnR 11.0" in text
    assert get_preset("didemo-b16").feature_bytes == 10428 * 12 * 512 * 2 + 10428 * 512 * 4


def test_an_unknown_preset_lists_the_known_ones():
    with pytest.raises(BadInput, match="msrvtt-b32, msrvtt-b16"):
        get_preset("msrvtt-l14")


@pytest.mark.parametrize("name", PRESETS)
def test_every_row_of_every_table_can_be_trained_with_every_preset(name):
    """`reproduce` builds each system over the preset's settings; a row that says T' = 10 gets 10."""
    preset = get_preset(name)
    store = SimpleNamespace(dim=preset.embed_dim, settings={"model": preset.model}, num_frames=12)
    chosen = SimpleNamespace(dataset=preset.dataset, store=store)
    TrainSettings(**recipe(chosen), seed=24)
    rows = [row for table in TABLES.values() for row in table.rows]
    configs = {row.system: HeadConfig(**system_settings(chosen, row.system, {})) for row in rows}
    for row in rows:
        if named := re.search(r"T' = ([1-9]\d*)", row.label):
            assert configs[row.system].T_prime == int(named[1]), row.label
    assert configs["dits"].dropout == preset.head.get("dropout", HeadConfig(dim=preset.embed_dim).dropout)


def test_a_head_takes_its_sizes_from_the_features():
    store = SimpleNamespace(settings={"model": "another"}, dim=8, num_frames=4)
    chosen = SimpleNamespace(dataset="toy", store=store)
    config = head_config(chosen, "tmass", {})
    assert (config.dim, config.num_frames) == (8, 4)
    with pytest.raises(BadInput, match="expected --head dits; got --head xpool"):
        head_config(chosen, "xpool", {}, paper_literal=True)
