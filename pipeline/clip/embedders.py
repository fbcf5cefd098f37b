"""Load an encoder by its model's name, whichever library makes it."""

from typing import Any

from pipeline.clip.protocol import ST_PREFIX, Embedder


def load_embedder(model: str = "shapes-clip", pretrained: str | None = None, **given: Any) -> Embedder:
    """Load the encoder that a model's name says: "st:NAME|FOLDER", or any of open_clip (`load_encoder`'s options).

    Raises BadInput.
    """
    if model.startswith(ST_PREFIX):
        from pipeline.clip.st_encoder import load_st_encoder

        return load_st_encoder(model, pretrained, **given)
    from pipeline.clip.encoder import load_encoder

    return load_encoder(model, pretrained, **given)
