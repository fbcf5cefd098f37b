"""Stage 1: a manifest of videos and captions in, a feature store out.

Belongs here: the work on one shard, the run over all of them, what it costs. Does not: decoding (`pipeline.video`),
encoders (`pipeline.clip`), file formats (`pipeline.stores`).
"""
