"""DITS and its rivals as one retrieval head: pure torch, no files, nothing of the pipeline.

`dits_head.config.HeadConfig` says which system, `dits_head.head.build_head` makes it. Importing this package alone does
not import torch.
"""
