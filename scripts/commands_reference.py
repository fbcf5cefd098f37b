"""Write the commands page of the documentation from the command line itself.

    python scripts/commands_reference.py docs/reference/commands.md

`make docs` runs it before the site is built, so the page cannot differ from `--help`.
"""

import inspect
import sys
from pathlib import Path
from typing import Any

from typer.main import get_command

import cli

INTRODUCTION = """# Commands

Generated from `python cli.py COMMAND --help`. `--json` prints one object on stdout; progress and messages go to stderr.
Exit codes: 0 done; 1 done, but below a required level (coverage, verification); 2 invalid input; 130 interrupted.
"""


def cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|").replace("<", "&lt;")


def option_row(parameter: Any) -> str:
    """A table row: names, default, help."""
    names = parameter.metavar or parameter.name
    if parameter.opts[0].startswith("-"):
        names = ", ".join([*parameter.opts, *parameter.secondary_opts])
    default = parameter.default
    shown = "required" if parameter.required else "" if default is None or default is False else f"`{default}`"
    return f"| `{cell(names)}` | {cell(shown)} | {cell(getattr(parameter, 'help', None) or '')} |"


def section(name: str, command: Any) -> str:
    """One command: what it does, examples, a table of its options."""
    text, _, examples = inspect.cleandoc(command.help or "").partition("\b\n")
    blocks = [f"## {name}", text.strip()]
    if examples:
        blocks.append(f"```\n{inspect.cleandoc(examples)}\n```")
    shown = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    blocks.append("\n".join(["| option | default | |", "| --- | --- | --- |", *map(option_row, shown)]))
    return "\n\n".join(blocks)


def commands_page() -> str:
    commands: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]
    return "\n\n".join([INTRODUCTION.strip(), *(section(name, command) for name, command in commands.items())]) + "\n"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(commands_page())
