"""The only owner of file formats: manifests, shards, feature stores, checkpoints, index generations.

Belongs here: what a file holds, how it is written whole or not at all, how it is read. Does not: what a stage computes.
"""
