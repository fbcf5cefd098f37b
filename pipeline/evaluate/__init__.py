"""Measurement: ranks, metrics, intervals, index loss, the modality gap, plots and the report.

Belongs here: what turns scores into figures. Does not: how scores and shortlists are made (`pipeline.retrieve`),
tables over many runs (`pipeline.experiments`).
"""
