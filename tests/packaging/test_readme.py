"""What the README and the documentation tell people to type is what the command line takes."""

import ast
import importlib
import re
import shlex
from pathlib import Path

import pytest
import typer

from latentrt.cli.main import application

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "CHANGELOG.md"]
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
SCRIPTS = {"latentrt": [], "build-engine": ["build-engine"]}


def blocks(page, *languages):
    """The text of a page's code fences in these languages."""
    text = page.read_text(encoding="utf-8") if page.is_file() else ""
    return [content for language, content in FENCE.findall(text) if language in languages]


def shell_commands(text):
    """The commands of latentrt's own in a shell block, as lists of words, however they are chained."""
    prompts = [line for line in text.splitlines() if line.startswith("$ ")]
    text = "\n".join(line[2:] for line in prompts) if prompts else text
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        lexer.whitespace_split = True
        command = []
        for word in [*lexer, ";"]:
            if set(word) <= set("&|;"):
                if command and Path(command[0]).name in SCRIPTS:
                    yield [*SCRIPTS[Path(command[0]).name], *command[1:]]
                command = []
            elif command or "=" not in word:
                command.append(word)


def found_commands(page):
    return [words for text in blocks(page, "bash", "console", "sh", "shell") for words in shell_commands(text)]


def parse(words):
    """Parse a command as the shell would hand it over, without running it."""
    group = typer.main.get_command(application())
    name, *arguments = words
    assert name in group.commands, f"there is no command latentrt {name}"
    try:
        return group.commands[name].make_context(name, list(arguments))
    except Exception as error:  # typer's own classes moved between its versions
        pytest.fail(f"latentrt {shlex.join(words)}: {getattr(error, 'message', error)}")


CASES = [pytest.param(words, id=f"{page.name}-{shlex.join(words)}") for page in PAGES for words in found_commands(page)]


@pytest.mark.parametrize("words", CASES)
def test_every_command_parses(words):
    if "--help" not in words:
        assert parse(words).command.name == words[0]


def test_the_readme_has_commands():
    names = [words[0] for words in found_commands(ROOT / "README.md")]
    assert {"demo", "export", "build-engine", "generate"} <= set(names)


@pytest.mark.parametrize(
    ("text", "commands"),
    [
        ("latentrt export a -o 'my bundle' # comment\n", [["export", "a", "-o", "my bundle"]]),
        ("python -m venv .venv && .venv/bin/latentrt demo; ls\n", [["demo"]]),
        ("A=1 build-engine b \\\n  --backend x | tail -1\n", [["build-engine", "b", "--backend", "x"]]),
        ("$ latentrt doctor\nnumpy ok\nlatentrt is fine\n", [["doctor"]]),
        ("pip install latentrt\necho latentrt\n", []),
    ],
)
def test_commands_are_found(text, commands):
    assert list(shell_commands(text)) == commands


@pytest.mark.parametrize("words", [["inspect", "b", "--colour"], ["export", "a"], ["doctor", "x"]])
def test_a_wrong_command_fails(words):
    with pytest.raises(pytest.fail.Exception, match=f"latentrt {words[0]}"):
        parse(words)


def links():
    for page in PAGES:
        text = page.read_text(encoding="utf-8") if page.is_file() else ""
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if "://" not in target:
                yield pytest.param(page.parent / target, id=f"{page.name}-{target}")


@pytest.mark.parametrize("target", list(links()))
def test_every_link_leads_somewhere(target):
    assert target.exists()


def python_imports():
    for page in PAGES:
        for text in blocks(page, "python"):
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ImportFrom) and str(node.module).startswith("latentrt"):
                    yield from ((node.module, name.name) for name in node.names)


@pytest.mark.parametrize(("module", "name"), sorted(set(python_imports())))
def test_every_import_of_the_examples_works(module, name):
    assert hasattr(importlib.import_module(module), name)
