"""The documents lead somewhere: the files, commands, options, modules and extras that they name exist."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
GENERATED = {ROOT / "docs/reference/commands.md"}  # by `make docs`, before the links are checked there
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
COMMANDS: dict[str, Any] = get_command(cli.app).commands  # type: ignore[attr-defined]


@pytest.fixture(params=DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def document(request):
    return request.param


def test_links_and_files(document):
    text = document.read_text()
    links = [document.parent / link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [str(link) for link in links if not link.exists() and link.resolve() not in GENERATED] == []
    files = re.findall(r"\b(?:benchmarks|docs|scripts|tests|pipeline|dits_head)/[\w/]+(?:\.(?:py|md)\b|/)", text)
    assert [file for file in files if not (ROOT / file).exists()] == []


def test_commands_and_options(document):
    """`python cli.py COMMAND --option`, and `COMMAND --option` in code: both are the command line's."""
    text = re.sub(r"\\\n\s*", " ", document.read_text())
    named = re.findall(r"python cli\.py ([a-z][\w-]*)", text)
    assert set(named) <= COMMANDS.keys()
    names = "|".join(COMMANDS)
    code = re.findall(r"`([^`\n]+)`", text) + [
        line
        for block in re.findall(r"^```(?:bash)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
        for line in block.split("\n")
    ]
    wrong = []
    for line in code:
        for command, rest in re.findall(rf"(?:^|cli\.py )({names})((?: [^#&|;\n]*)?)", line):
            known = {
                option for parameter in COMMANDS[command].params for option in parameter.opts + parameter.secondary_opts
            }
            given = set(re.findall(r"(?<=\s)--[a-z][\w-]*", rest))
            wrong += [f"{command} {option}" for option in given - known - {"--help"}]
    assert wrong == []


def test_make_targets_and_extras(document):
    text = document.read_text()
    targets = set(re.findall(r"^([a-z-]+)(?: [a-z-]+)*:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    targets |= {"train-head", "index", "evaluate", "reindex"}
    assert set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", text, flags=re.MULTILINE)) <= targets
    extras = set(re.findall(r"\.\[([a-z,]+)\]", text)) | set(re.findall(r"extra `(\w+)`", text))
    assert {name for group in extras for name in group.split(",")} <= PROJECT["optional-dependencies"].keys()


def test_python_examples_import_what_exists(document):
    for block in re.findall(r"^```python\n(.*?)^```", document.read_text(), flags=re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_the_api_pages_name_what_exists(document):
    for name in re.findall(r"^::: ([\w.]+)$", document.read_text(), flags=re.MULTILINE):
        module, _, attribute = name.rpartition(".")
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), attribute), name


def test_nothing_is_left_to_be_filled_in(document):
    assert re.findall(r"^[A-Z0-9]{4,}$", document.read_text(), flags=re.MULTILINE) == []


def test_the_site_has_every_page():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    pages = set(re.findall(r"[\w/-]+\.md", str(site["nav"])))
    assert pages == {str(path.relative_to(ROOT / "docs")) for path in {*ROOT.glob("docs/**/*.md"), *GENERATED}}


def test_the_commands_page_has_every_command_and_option(tmp_path):
    page = tmp_path / "commands.md"
    script = [sys.executable, "scripts/commands_reference.py", str(page)]
    subprocess.run(script, cwd=ROOT, check=True, env={"PYTHONPATH": str(ROOT)})
    sections = dict(section.split("\n", 1) for section in page.read_text().split("\n## ")[1:])
    assert sections.keys() == COMMANDS.keys()
    for name, command in COMMANDS.items():
        options = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
        assert [option for option in options if option not in sections[name]] == [], name


def test_versions_agree():
    version = PROJECT["version"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()
