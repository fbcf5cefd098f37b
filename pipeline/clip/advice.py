"""Warnings about the choice of an encoder."""

import logging

log = logging.getLogger(__name__)
SHAPES = ("shapes", "shapes-hard")  # the data sets that it was made for
TEST_MODEL = "shapes-clip"


def warn_of_test_model(model: str | None, dataset: str) -> bool:
    """Log one line, naming the remedy, where the built-in test encoder meets anything but its own data sets.

    Args:
        model: the encoder's name, as in a store's settings.
        dataset: the data set that it encodes, or encoded.

    Returns:
        Whether it was logged.
    """
    unfit = model == TEST_MODEL and dataset not in SHAPES
    if unfit:
        log.warning(
            f"{TEST_MODEL} knows drawn shapes only, so searches in {dataset} give noise; extract with a real CLIP: "
            "--model ViT-B-32 --pretrained openai (a tag of open_clip, or a local weights file)"
        )
    return unfit
