"""What every command leaves for programs: the last line of stdout, as docs/command-line.md has it, and exit codes."""

import ast
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import graph_bundles
import pytest
from command_line import run_main

from latentrt.cli.main import application
from latentrt.cli.output import finish
from latentrt.runtime.errors import RequestError

ROOT = Path(__file__).parents[2]
SCRIPT = Path(sys.executable).with_name("latentrt")
ROW = re.compile(r"^\| `latentrt ([\w-]+)(.*?)`.*\| ((?:`\w+`(?:, )?)+) \|$", re.M)


def documented():
    """The fields of each command's last line, by the module that holds the command."""
    fields = {}
    for command, options, names in ROW.findall((ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")):
        module = "build" if command == "build-engine" else command
        fields.setdefault(module, []).append(re.findall(r"\w+", names))
        assert "--list" not in options or command == "bench"
    return fields


def written(module):
    """The fields that a command's calls of `finish` give."""
    tree = ast.parse((ROOT / "cli" / f"{module}.py").read_text(encoding="utf-8"))
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "finish"]
    return [[keyword.arg for keyword in call.keywords] for call in calls]


COMMANDS = ("export", "build", "generate", "inspect", "verify", "doctor", "bench", "demo")


def test_every_command_is_documented():
    page = (ROOT / "docs" / "command-line.md").read_text(encoding="utf-8")
    commands = [command.name for command in application().registered_commands]
    assert [name for name in commands if f"| `latentrt {name}" not in page] == []
    assert documented().keys() == {*COMMANDS} == {name.removesuffix("-engine") for name in commands} - {"serve"}


@pytest.mark.parametrize("module", COMMANDS)
def test_the_fields_are_those_documented(module):
    assert sorted(written(module)) == sorted(documented()[module])


@pytest.mark.parametrize("command", [["inspect", "{bundle}"], ["doctor"], ["bench", "--list"]])
def test_stdout_is_one_line(capsys, tmp_path, command):
    if command[0] == "bench":
        pytest.importorskip("torch")
    bundle = graph_bundles.write_graph_bundle(tmp_path / "b", ("vae_decoder",)) or tmp_path / "b"
    run = run_main(capsys, *(word.format(bundle=tmp_path / "b") for word in command))
    assert bundle
    assert len(run.stdout.splitlines()) == 1
    assert sorted(run.result) in [sorted(fields) for fields in documented()[command[0]]]
    assert run.exit == (1 if run.result.get("problems") else 0)


def test_a_number_that_json_does_not_have(capsys):
    finish(values={"a": [float("inf"), -float("inf"), float("nan"), 1.5]}, path=Path("x"))
    assert capsys.readouterr().out == '{"values": {"a": [null, null, null, 1.5]}, "path": "x"}\n'


def test_a_stdout_that_takes_no_more():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [SCRIPT, "doctor"], stdout=full, stderr=subprocess.PIPE, text=True, check=False, env=dict(os.environ)
        )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "RequestError: <stdout>: cannot be written (No space left on device)"
    assert "Exception ignored" not in done.stderr


def test_the_stream_is_done_with(tmp_path):
    file = (tmp_path / "x").open("w")
    file.close()
    with pytest.raises(RequestError, match=r"x: cannot be written \(I/O operation on closed file"):
        finish(file, a=1)


def test_an_error_leaves_stdout_empty(capsys, tmp_path):
    run = run_main(capsys, "inspect", tmp_path)
    assert (run.exit, run.stdout) == (1, "")


def test_completion_is_on():
    environment = {**os.environ, "_LATENTRT_COMPLETE": "complete_bash", "COMP_WORDS": "latentrt gen", "COMP_CWORD": "1"}
    done = subprocess.run([SCRIPT], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["generate"])


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        ("OSError(28, 'No space left on device', '/x/a.bin')", "OSError: /x/a.bin: No space left on device"),
        ("PermissionError(13, 'Permission denied')", "PermissionError: Permission denied"),
        ("OSError(18, 'Invalid cross-device link', 'a', None, 'b')", "OSError: a: b: Invalid cross-device link"),
    ],
)
def test_errors_of_the_system_are_one_line(error, sentence):
    code = f"from latentrt.cli.ending import run_command\ndef fail(): raise {error}\nrun_command(fail)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", f"{sentence}\n")


def test_the_line_is_json_for_others_too(capsys):
    finish(a="é\n", b=(1, 2))
    assert json.loads(capsys.readouterr().out) == {"a": "é\n", "b": [1, 2]}
