"""HeadConfig: every bad combination is refused with the fix, every good one survives a round trip."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from dits_head.config import HEADS, HeadConfig
from pipeline.fingerprint import fingerprint


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"head": "dit"}, "choose one of"),
        ({"schedule": "quadratic"}, "choose one of linear, literal"),
        ({"T_prime": 40}, "set T=40"),
        ({"T_prime": -1}, "expected an integer >= 0"),
        ({"dim": 0}, "expected an integer >= 1"),
        ({"dropout": 1.0}, "expected a probability"),
        ({"init_logit_scale": 200.0}, "set at most 100"),
        ({"sigma2": 0.0}, "expected a number > 0"),
        ({"index_loss": -1.0}, "expected a weight >= 0"),
        ({"head": "xpool", "T_prime": 10}, "use head='dits'"),
        ({"head": "mlp", "condition": "t"}, "use head='dits'"),
        ({"head": "xpool", "noise_eval": True}, "leave both off"),
        ({"head": "fixed-prior", "noise_eval": False}, "leave noise_train and noise_eval on"),
        ({"head": "diffusion", "T_prime": 5}, "set T_prime=10"),
        ({"head": "diffusion", "schedule": "linear"}, "schedule='literal' or T=1000"),
        ({"head": "diffusion", "condition": "tv"}, "set condition='t' or 'none'"),
        ({"head": "diffusion", "gap": "t-v"}, "gap='v-t'"),
        ({"condition": "v", "pool_query": "aligned"}, "set pool_query='text'"),
        ({"head": "tmass", "index_loss": 0.5}, "set index_loss=0"),
        ({"head": "tmass", "prior": "none"}, "'uniform' or 'normal'"),
        ({"head": "tmass-lite", "prior": "uniform"}, "no other head does"),
        ({"head": "mean-pool", "dropout": 0.3}, "set dropout=0"),
        ({"head": "mean-pool", "index_vectors": 4}, "index_vectors=1"),
        ({"head": "cca", "index_vectors": 4}, "head='cca' has no dropout"),
        ({"head": "three-views", "noise_train": True}, "leave both off"),
        ({"relative": True, "normalise": True}, "leave one of the two off"),
        ({"head": "xpool", "relative": True}, "no steps to relate"),
        ({"head": "diffusion", "index_loss": 1.0}, "set index_loss=0 or stage='finetune'"),
    ],
)
def test_bad_combinations_are_refused_with_the_fix(settings: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        HeadConfig(**settings)


@pytest.mark.parametrize("head", HEADS)
def test_every_head_has_working_defaults_and_survives_json(head: str) -> None:
    config = HeadConfig(head=head, dim=64)
    assert HeadConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown settings \\['tprime'\\]"):
        HeadConfig.from_dict({"head": "dits", "tprime": 3})


def test_configs_of_earlier_versions_load_unless_they_name_what_is_not_built_any_more() -> None:
    stored = HeadConfig(dim=64).to_dict()
    assert (stored["tied"], stored["step_loss"]) == (True, 0.0)  # run names and index fingerprints are made of these
    assert HeadConfig.from_dict(stored) == HeadConfig(dim=64)
    for value in ({"tied": False}, {"step_loss": 0.5}):
        with pytest.raises(ValueError, match="not built any more; train it anew"):
            HeadConfig.from_dict(stored | value)


def test_a_tmass_head_of_an_earlier_version_loads_as_what_it_was() -> None:
    stored = HeadConfig(head="tmass-lite", dim=64).to_dict() | {"head": "tmass"}
    assert HeadConfig.from_dict(stored) == HeadConfig(head="tmass-lite", dim=64)


def test_the_name_of_a_run_stays_what_it_was() -> None:
    golden = {"dits": "361d214e87a4c085", "xpool": "fcb5550ee542775d"}
    absolute = {head: HeadConfig(head=head, dim=128, relative=False).to_dict() for head in golden}
    assert {head: fingerprint(stored) for head, stored in absolute.items()} == golden


def test_a_dits_head_of_an_earlier_version_loads_with_the_unit_that_it_had() -> None:
    stored = HeadConfig(dim=64, relative=False).to_dict()
    assert "relative" not in stored
    assert not HeadConfig.from_dict(stored).relative
    assert HeadConfig.from_dict(HeadConfig(dim=64).to_dict()).relative


def test_defaults_are_resolved_so_that_a_stored_config_says_everything() -> None:
    stored = HeadConfig(head="diffusion").to_dict()
    assert (stored["T_prime"], stored["schedule"], stored["condition"]) == (10, "literal", "t")
    assert None not in stored.values()
    assert "default" not in stored.values()


def test_paper_literal() -> None:
    config = HeadConfig.paper_literal(512, T_prime=5)
    assert (config.schedule, config.noise_train, config.noise_eval, config.steps) == ("literal", True, True, 5)
    assert config.dropout == 0.3
    assert not config.relative


@pytest.mark.parametrize(
    ("settings", "indexable"),
    [({}, True), ({"condition": "t"}, True), ({"condition": "tv"}, False), ({"gap": "t-v"}, False)],
)
def test_which_systems_need_the_video(settings: dict, indexable: bool) -> None:
    assert (HeadConfig(**settings).needs_video is None) == indexable


def test_the_config_imports_no_torch() -> None:
    code = "import sys, dits_head.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
