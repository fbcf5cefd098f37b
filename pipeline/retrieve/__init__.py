"""Stage 3: exact scores, FAISS indexes, two-stage search, generations of an index and their updates.

Belongs here: everything that knows `faiss`. Does not: metrics and reports (`pipeline.evaluate`).
"""
