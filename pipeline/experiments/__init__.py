"""The paper's tables and figures: systems, the runs behind them, what is measured of each, `reproduce`.

Belongs here: whatever compares several trained runs. Does not: training or evaluating one (`pipeline.train`,
`pipeline.evaluate`).
"""
