"""The documents lead somewhere: their links, scripts and commands exist, and nothing was left to be filled in."""

import re
from pathlib import Path

import pytest
from typer.main import get_command

import cli

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_what_a_document_names_exists(path):
    text = path.read_text()
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    assert [link for link in links if not (path.parent / link).exists()] == []
    scripts = re.findall(r"\b(?:benchmarks|scripts|tests)/\w+\.py", text)
    assert [script for script in scripts if not (ROOT / script).exists()] == []
    commands = re.findall(r"python cli\.py ([a-z][\w-]*)", text)
    assert set(commands) <= set(get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert re.findall(r"^[A-Z0-9]{4,}$", text, flags=re.MULTILINE) == []
