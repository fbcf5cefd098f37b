"""Encoders: load any open_clip model, embed frames and captions, capture activations, train its top blocks.

Belongs here: everything that knows `open_clip`. Does not: files of features (`pipeline.stores`), videos
(`pipeline.video`), training loops (`pipeline.train`).
"""
