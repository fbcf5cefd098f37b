"""Stage 2: train a head on cached features, alone, distilled from another, or together with CLIP.

Belongs here: batches, the training loop, runs and their records. Does not: the model (`dits_head`), figures of a
finished run (`pipeline.evaluate`).
"""
