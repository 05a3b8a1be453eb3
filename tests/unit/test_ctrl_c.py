"""Ctrl-C: a real SIGINT, sent to the process at a chosen call, ends every command with one sentence and 130."""

import subprocess
import sys

import pytest

STOP_AT = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a test's parent may have switched it off
def stop_at(frame, event, argument):
    code = frame.f_code
    if event == "call" and code.co_name == {name!r} and {file!r} in code.co_filename:
        sys.setprofile(None)
        os.kill(os.getpid(), signal.SIGINT)
sys.argv = ["latentrt", *{arguments!r}]
from latentrt.cli.main import main
sys.setprofile(stop_at)
main()
"""

COMMANDS = {
    "export": ("/cli/export.py", "export", ["x", "-o", "y"]),
    "build-engine": ("/cli/build.py", "build_engine", ["x", "--backend", "onnxruntime"]),
    "generate": ("/cli/generate.py", "generate", ["x", "a cat"]),
    "inspect": ("/cli/inspect.py", "inspect", ["x"]),
    "verify": ("/cli/verify.py", "verify", ["x", "--reference", "y"]),
    "doctor": ("/cli/doctor.py", "doctor", []),
    "bench": ("/cli/bench.py", "bench", ["--list"]),
    "demo": ("/cli/demo.py", "demo", []),
}
IMPORTS = {module: (f"/{module}", "<module>", ["doctor"]) for module in ("numpy/__init__.py", "rich/console.py")}


@pytest.mark.parametrize(
    ("file", "name", "arguments"),
    [
        *(
            pytest.param(file, name, [command, *rest], marks=[] if command == "generate" else pytest.mark.slow)
            for command, (file, name, rest) in COMMANDS.items()
        ),
        *IMPORTS.values(),
    ],
    ids=[*COMMANDS, *IMPORTS],
)
def test_ctrl_c(tmp_path, file, name, arguments):
    code = STOP_AT.format(file=file, name=name, arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "stopped; nothing was left half done\n")
    assert [*tmp_path.iterdir()] == []
