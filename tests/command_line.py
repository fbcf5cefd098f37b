"""The command line, run in this process."""

from typer.testing import CliRunner

import cli


def run(*arguments, code=0):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def refused(*arguments):
    """The one line on stderr of a command that exits with 2."""
    result = run(*arguments, code=2)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "Traceback" not in result.stderr
    return errors[0]
