"""A sampler whose noise or steps are longer than the texts says so, once, and only then."""

import numpy as np
import pytest

from dits_head.config import HeadConfig
from pipeline.train.run import unit_warning

TEXTS = np.eye(4, 512, dtype=np.float32)


@pytest.mark.parametrize(
    ("config", "length", "warns"),
    [
        (HeadConfig.paper_literal(512), 1.0, True),
        (HeadConfig.paper_literal(512), 60.0, False),
        (HeadConfig.paper_literal(512, noise_train=False), 10.0, True),  # chi sum to 19
        (HeadConfig.paper_literal(512, noise_train=False), 30.0, False),
        (HeadConfig(dim=512), 1.0, False),
        (HeadConfig(head="xpool", dim=512), 1.0, False),
    ],
)
def test_only_what_drowns_the_text_is_warned_of(config, length, warns):
    said = unit_warning(config, length * TEXTS)
    assert ("they may drown them" in said) == warns
    if warns:
        assert f"texts have length {length:.3g}" in said
