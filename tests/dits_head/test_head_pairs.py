"""One text on one video: the scores and weights of pairs against those of all texts with all videos."""

import pytest
import torch
from head_helpers import scrambled

from dits_head.config import HeadConfig
from dits_head.head import ROWS, build_head


@pytest.mark.parametrize(
    "config",
    [
        {"head": "mean-pool"},
        {"head": "xpool"},
        {"head": "mlp"},
        {"head": "dits", "T_prime": 3, "blocks": 1},
        {"head": "dits", "T_prime": 3, "blocks": 1, "pool_query": "text"},
        {"head": "fixed-prior"},
        {"head": "tmass"},
    ],
)
def test_scores_of_pairs_are_the_diagonal(config):
    head = scrambled(build_head(HeadConfig(dim=16, num_frames=5, **config))).eval()
    texts, frames = torch.randn(9, 16), torch.randn(9, 5, 16).half()
    mask = torch.arange(5) < torch.randint(1, 6, (9, 1))
    prepared = head.prepare_texts(texts)
    each = head.score_each(prepared, frames, mask)
    torch.testing.assert_close(each, head.score(texts, frames, mask).diagonal(), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["xpool", "mean-pool"])
def test_frame_weights(kind):
    head = scrambled(build_head(HeadConfig(head=kind, dim=16))).eval()
    texts, frames = torch.randn(6, 16), torch.randn(6, 5, 16)
    mask = torch.arange(5) < torch.randint(1, 6, (6, 1))
    weights = head.frame_weights(head.prepare_texts(texts), frames, mask)
    assert torch.equal(weights == -torch.inf, ~mask)
    if kind == "xpool":
        torch.testing.assert_close(weights.masked_fill(~mask, 0).sum(1), torch.ones(6))


def test_a_text_alone_is_not_padded_and_the_same_but_for_rounding(monkeypatch):
    head = scrambled(build_head(HeadConfig(head="dits", dim=16, T_prime=3, blocks=1))).eval()
    texts, seen = torch.randn(3, 16), []
    head.aligner.register_forward_pre_hook(lambda module, arguments: seen.append(len(arguments[0])))
    padded, alone = head.align_text(texts), head.align_text(texts[:1], rows=1)
    assert seen == [ROWS, 1]
    torch.testing.assert_close(alone, padded[:1], atol=1e-6, rtol=1e-5)
