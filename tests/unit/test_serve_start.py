"""What `latentrt serve` refuses before it loads anything, and how it ends when it is stopped before that."""

import os
import shutil
import signal
import socket
import subprocess

import pytest
from command_line import run_main
from loras import LINEAR, write_lora
from PIL import Image

from latentrt.cli import serve as serve_module
from latentrt.runtime import LatentRTError
from latentrt.serve.server import check_tls


@pytest.fixture(autouse=True)
def nothing_is_loaded(monkeypatch):
    def loaded(folders):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(serve_module, "named_bundles", loaded)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "'--port'"),
        (["--port", "-1"], "'--port'"),
        (["--keep", "-1"], "'--keep'"),
        (["--max-body", "0"], "'--max-body'"),
        (["--tls-key", "key.pem"], "--tls-key: needs --tls-certificate too"),
        (["--api-key", ""], "--api-key: an empty key; leave the option out"),
    ],
)
def test_wrong_usage(capsys, arguments, message):
    run = run_main(capsys, "serve", *arguments)
    assert (run.exit, message in run.error) == (2, True), run.error


def test_addresses_that_cannot_be_used(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = run_main(capsys, "serve", "--port", port)
    assert run.error == f"LatentRTError: --host 127.0.0.1 --port {port}: Address already in use. Name another address"
    assert run.exit == 1
    run = run_main(capsys, "serve", "--host", "..")
    assert (run.exit, run.error) == (1, "LatentRTError: --host ..: not a host's name. Name another address")


def test_files_that_are_no_certificate(capsys, tmp_path):
    missing, picture = tmp_path / "none.pem", tmp_path / "a.png"
    Image.new("RGB", (4, 4)).save(picture)
    run = run_main(capsys, "serve", "--tls-certificate", missing)
    assert (run.exit, run.error) == (1, f"LatentRTError: --tls-certificate {missing}: No such file or directory")
    run = run_main(capsys, "serve", "--tls-certificate", picture, "--tls-key", picture)
    assert (run.exit, "a.png: not a certificate and its private key in PEM format" in run.error) == (1, True)


def test_loras_that_cannot_be_served(capsys, tmp_path):
    file = write_lora(tmp_path / "a.safetensors", "peft", LINEAR, rank=2)
    (tmp_path / "wrong.safetensors").write_bytes(b"wrong")
    for arguments, message in (
        ([tmp_path / "none.safetensors"], "none.safetensors"),
        ([tmp_path / "wrong.safetensors"], "wrong.safetensors"),
        ([f"{file}:0.8"], f"--lora {file}:0.8: requests give the strength. Name the file alone: {file}"),
        ([file, tmp_path / "b" / "a.safetensors"], "have one name, by which LoRAs are told apart"),
    ):
        run = run_main(capsys, "serve", *(part for one in arguments for part in ("--lora", one)))
        assert (run.exit, message in run.error) == (1, True), run.error


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificates")
def test_certificates_and_keys(tmp_path):
    def made(name, *options):
        key, certificate = tmp_path / f"{name}.key", tmp_path / f"{name}.pem"
        command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
        command += ["-subj", "/CN=localhost", "-keyout", str(key), "-out", str(certificate), *options]
        subprocess.run(command, check=True, capture_output=True)
        return certificate, key

    certificate, key = made("a", "-nodes")
    check_tls(certificate, key)
    with pytest.raises(LatentRTError, match="the key is not the certificate's"):
        check_tls(certificate, made("b", "-nodes")[1])
    with pytest.raises(LatentRTError, match="the key is encrypted"):
        check_tls(*made("c", "-passout", "pass:secret"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_server_runs_ends_it_with_0(capsys, monkeypatch, number):
    monkeypatch.setattr(serve_module, "named_bundles", lambda folders: os.kill(os.getpid(), number))
    before = signal.getsignal(number)
    assert run_main(capsys, "serve", "--port", "0").exit == 0
    assert signal.getsignal(number) is before


def test_an_export_of_the_demo_is_logged(monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(serve_module, "demo_folder", lambda: tmp_path / "none")
    monkeypatch.setattr(serve_module, "demo_bundle", lambda: "made")
    with caplog.at_level("INFO", "latentrt.serve"):
        assert serve_module._demo() == "made"
    first, last = (record.getMessage() for record in caplog.records)
    assert (first, last) == (
        "no demo here yet: it is exported first, which takes half a minute to a minute",
        "the demo is exported",
    )
