"""The command group: messages on stderr, errors as one line, exit codes.

0 done; 1 done but not good enough (coverage, verification); 2 a mistake in what was given; 70 an internal error, with
its traceback; 130 interrupted. With `--json` an error is one JSON object, still on stderr.
"""

import json
import logging
import shlex
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
import typer.core
import typer.exceptions

from pipeline import remote
from pipeline.errors import BadInput, DiskFull, MissingData, UserError, disk_full

log = logging.getLogger("pipeline")  # a handler here gets the records of every room
MISTAKE, INTERNAL, INTERRUPTED = 2, 70, 130  # 70: EX_SOFTWARE of sysexits.h


class Commands(typer.core.TyperGroup):
    """Turns what a command raises into a message and an exit code."""

    def main(self, args: Sequence[str] | None = None, *positional: Any, **extra: Any) -> None:
        given = [*(sys.argv[1:] if args is None else args)]
        with messages_on_stderr():
            try:
                require_text(given)
                code = super().main(given, *positional, **{**extra, "standalone_mode": False})
            except typer.exceptions.TyperException as error:
                if type(error).__name__ == "NoArgsIsHelpError":  # its message is the help
                    print(error.format_message(), file=sys.stderr)
                    sys.exit(MISTAKE)
                context = getattr(error, "ctx", None)
                path = context.command_path if context else "cli.py"
                mistake = BadInput(error.format_message().rstrip("."), fix=f"see `{path} --help`")
                code = report(mistake, MISTAKE, "--json" in given)
            except UserError as error:
                code = report(error, MISTAKE, "--json" in given)
            except Exception as error:
                if full := disk_full(error):
                    code = report(no_room(full, given), MISTAKE, "--json" in given)
                elif library := absent_library(error):
                    absent = MissingData(f"{library} is not installed", fix="pip install 'dits-retrieval[cpu]'")
                    code = report(absent, MISTAKE, "--json" in given)
                else:
                    log.error(traceback.format_exc().rstrip())
                    code = report(error, INTERNAL, "--json" in given)
        sys.exit(code if isinstance(code, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            remote.finish()
        except KeyboardInterrupt:
            log.error("interrupted; run the same command again to go on")
            raise typer.Exit(INTERRUPTED) from None
        except typer.Exit:  # done, but not good enough
            remote.finish()
            raise
        finally:
            remote.finish(send=False)
        return result


def report(error: Exception, code: int, as_json: bool) -> int:
    """Log an error as one line or as one JSON object, and return its exit code."""
    if as_json:
        about = {"error": type(error).__name__, "message": str(error), "exit_code": code}
        log.error(json.dumps(about, ensure_ascii=False))
    elif code == INTERNAL:
        log.error("internal error: please report the lines above")
    else:
        log.error(f"error: {error}")
    return code


def no_room(error: BaseException, arguments: Sequence[str]) -> DiskFull:
    """What a full disk means to the user: every file is written under a temporary name, which is gone by now."""
    reason = " ".join(str(error).split())[:200]
    again = f"make room, then run the same command again: python cli.py {shlex.join(arguments)}"
    return DiskFull(
        f"no space left on the disk ({reason}); what was finished before is intact, and nothing half-written stays",
        fix=again,
    )


def absent_library(error: Exception) -> str | None:
    """The library of an extra that an import did not find; None for any other error."""
    name = str(error.name).partition(".")[0] if isinstance(error, ModuleNotFoundError) else None
    return None if name in ("pipeline", "dits_head", "cli") else name


def require_text(arguments: Sequence[str]) -> None:
    """Refuse what no file of the workspace could hold. Raises BadInput."""
    for argument in arguments:
        try:
            argument.encode()
        except UnicodeEncodeError:
            raise BadInput("an argument is no valid UTF-8", got=ascii(argument)) from None


@contextmanager
def messages_on_stderr() -> Iterator[None]:
    """Show the records of `pipeline` as plain lines on stderr; handlers that a command adds go with this one."""
    before = log.level, log.handlers[:], log.propagate
    log.handlers[:] = [logging.StreamHandler(sys.stderr)]
    log.propagate = False
    log.setLevel(logging.INFO)
    hook = threading.excepthook
    threading.excepthook = lambda about: one_line(about, hook)
    try:
        yield
    finally:
        threading.excepthook = hook
        for handler in log.handlers:
            handler.close()
        log.level, log.handlers[:], log.propagate = before
        log.setLevel(before[0])


def one_line(about: threading.ExceptHookArgs, otherwise: Callable[[threading.ExceptHookArgs], Any]) -> None:
    """A thread that finds no room on the disk (TensorBoard's writer) says so in a line: the command meets it too."""
    if disk_full(about.exc_value):
        log.warning(f"a thread found no room on the disk: {about.exc_value}")
    else:
        otherwise(about)


def show_less(quiet: bool) -> None:
    if quiet:
        log.setLevel(logging.WARNING)


def log_to_file(path: Path | None) -> None:
    """Append messages to a file too, with their times. Raises BadInput."""
    if path is None:
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise BadInput(f"--log-file {path} cannot be written: {error.strerror}") from None
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    log.addHandler(handler)


def print_version(wanted: bool) -> None:
    from importlib.metadata import version

    if wanted:
        print(version("dits-retrieval"))
        raise typer.Exit
