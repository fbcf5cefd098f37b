"""Runs of `reproduce` in this process instead of one each."""

from concurrent.futures import Future


class InProcess:
    """Runs at once and in this process what `runs` would give to processes of their own."""

    def __init__(self, *_, **__): ...
    def __enter__(self):
        return self

    def __exit__(self, *_): ...
    def submit(self, function, *arguments):
        future = Future()
        future.set_result(function(*arguments))
        return future
