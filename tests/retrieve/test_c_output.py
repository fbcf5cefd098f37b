"""Lines that C code prints: those that are known go to the log, others come out, in order."""

import ctypes
import logging
import os

from pipeline.retrieve.c_output import logged_output

LIBC = ctypes.CDLL(None)


def test_known_lines_are_logged_and_others_printed(capfd, caplog):
    with caplog.at_level(logging.DEBUG):
        LIBC.printf(b"before\n")
        with logged_output(("resizing ", "FLAG: ")):
            LIBC.printf(b"resizing a file\n")
            os.write(1, b"an answer of another thread\n")
            LIBC.printf(b"FLAG: here\n")
        LIBC.printf(b"after\n")
        LIBC.fflush(None)
    assert capfd.readouterr().out == "before\nan answer of another thread\nafter\n"
    assert [record.getMessage() for record in caplog.records] == ["resizing a file", "FLAG: here"]


def test_stdout_is_given_back_after_an_error(capfd):
    try:
        with logged_output(("resizing ",)):
            raise RuntimeError
    except RuntimeError:
        os.write(1, b"back\n")
    assert capfd.readouterr().out == "back\n"
