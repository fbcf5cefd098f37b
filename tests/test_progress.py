"""Progress where stderr is no terminal: a line every ten seconds, none where INFO records are not shown."""

import logging

from pipeline import progress


def test_a_line_every_ten_seconds(monkeypatch, caplog):
    clock = iter(range(0, 100, 4))  # a step takes four seconds
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress("videos") as step:
        for done in range(1, 8):
            step(done, 7, "clips")
    assert caplog.messages == ["videos: 3/7, 12 s, clips", "videos: 6/7, 24 s, clips"]


def test_nothing_where_info_is_not_shown(caplog, capfd):
    caplog.set_level(logging.WARNING)
    with progress.progress("videos") as step:
        step(1, 2)
    assert not caplog.records
    assert capfd.readouterr().err == ""


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True, raising=False)
    with progress.progress("videos") as step:
        step(1, 2, "first")
        progress.time.sleep(0.6)
        step(2, 2, "last")
    assert "videos: 100%" in capsys.readouterr().err
