"""`latentrt serve`: pictures over HTTP."""

import asyncio
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Optional

import typer

from latentrt.cli.demo import demo_bundle
from latentrt.cli.loras import GivenLoras
from latentrt.cli.options import BackendOption, BuildOption, OptionalPath, OptionalText
from latentrt.runtime.bundle import Bundle
from latentrt.runtime.bundle.bundle import DEMO, bundle_folder, demo_folder, is_bundle
from latentrt.runtime.errors import BackendError, RequestError
from latentrt.runtime.lora.adapter import rank_of

if TYPE_CHECKING:
    from latentrt.serve.desk import Desk

NEEDED = ("fastapi", "uvicorn", "prometheus_client", "python_multipart")
"""Modules of the extra."""

KEY_VARIABLE = "LATENTRT_API_KEY"

log = logging.getLogger("latentrt.serve")


def serve(
    bundles: Annotated[
        Optional[list[Path]],  # noqa: UP045 - typer reads it
        typer.Argument(help="Folders of the bundles to serve; the demo if none is named.", metavar="BUNDLE"),
    ] = None,
    host: Annotated[str, typer.Option("--host", help="Address to listen on; 0.0.0.0 for every one.")] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", min=0, max=65535, help="Port to listen on; 0 takes a free one.")
    ] = 8000,
    api_key: Annotated[
        OptionalText,
        typer.Option("--api-key", help="Key that clients must send.", envvar=KEY_VARIABLE, show_envvar=True),
    ] = None,
    max_batch: Annotated[int, typer.Option("--max-batch", min=1, help="Pictures in a batch, at most.")] = 8,
    keep_steps: Annotated[
        int,
        typer.Option(
            "--keep-steps", min=1, help="Sizes of batches whose buffers and captured step stay in memory, per bundle."
        ),
    ] = 24,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Requests that may wait; more get 429.")] = 64,
    max_pixels: Annotated[
        int, typer.Option("--max-pixels", min=1, help="Width times height, at most, of a picture drawn or sent.")
    ] = 2048 * 2048,
    max_steps: Annotated[int, typer.Option("--max-steps", min=1, help="U-Net evaluations of a request.")] = 200,
    max_pictures: Annotated[int, typer.Option("--max-pictures", min=1, help="Pictures of a request.")] = 16,
    max_prompt: Annotated[int, typer.Option("--max-prompt", min=1, help="Characters of a prompt.")] = 10_000,
    max_body: Annotated[int, typer.Option("--max-body", min=1, help="Megabytes of a request's body.")] = 64,
    keep: Annotated[int, typer.Option("--keep", min=0, help="Seconds for which answers can be fetched.")] = 600,
    certificate: Annotated[
        OptionalPath, typer.Option("--tls-certificate", help="PEM file, for HTTPS.", metavar="FILE")
    ] = None,
    private_key: Annotated[OptionalPath, typer.Option("--tls-key", help="PEM file of its key.", metavar="FILE")] = None,
    lora: Annotated[
        Optional[list[Path]],  # noqa: UP045 - typer reads it
        typer.Option(
            "--lora",
            metavar="FILE",
            help="LoRA that requests may use by its file's name (`loras`); every bundle needs a build with room "
            "(build-engine --lora-rank). Repeatable.",
        ),
    ] = None,
    backend: BackendOption = None,
    device: Annotated[OptionalText, typer.Option("--device", help="cpu or cuda:<index>.")] = None,
    build: BuildOption = None,
    log_format: Annotated[Literal["json", "text"], typer.Option("--log-format", help="Form of the log.")] = "json",
) -> None:
    """Serve pictures over HTTP: OpenAI's images API, AUTOMATIC1111's, and our own (docs/serving.md)."""
    check_installed()
    _check_usage(api_key, certificate, private_key)
    with _ended_by_signals():
        from latentrt.serve.desk import Desk, DeskConfig
        from latentrt.serve.limits import ServerLimits
        from latentrt.serve.logs import configure_server_logging
        from latentrt.serve.server import bind, check_tls
        from latentrt.serve.worker import WorkerConfig

        configure_server_logging(log_format == "json")
        limits = ServerLimits(max_body * 2**20, max_pixels, max_steps, max_pictures, max_prompt)
        check_tls(certificate, private_key)
        loras = _checked_loras(lora or [])
        with bind(host, port) as listening:  # before anything is loaded, or exported
            worker = WorkerConfig(
                named_bundles(bundles or [Path(DEMO)]),
                None if backend is None else backend.value,
                device,
                build,
                max_batch,
                keep_steps,
                limits,
                log_format == "json",
                loras,
            )
            desk = Desk(worker, DeskConfig(max_queue=max_queue, keep_seconds=keep))
            asyncio.run(_run(desk, host, listening, api_key, (_text(certificate), _text(private_key))))


def _check_usage(api_key: str | None, certificate: Path | None, private_key: Path | None) -> None:
    """Raise a usage error for options that do not go together."""
    if private_key is not None and certificate is None:
        raise typer.BadParameter("needs --tls-certificate too", param_hint="--tls-key")
    if api_key is not None and not api_key.strip():
        raise typer.BadParameter("an empty key; leave the option out to serve everybody", param_hint="--api-key")


def _checked_loras(files: list[Path]) -> tuple[Path, ...]:
    """LoRAs that can be read, each of another name.

    Raises:
        RequestError: two have one name, or one has a strength, which is the requests' matter.
        CheckpointError: one is missing, or no LoRA.
    """
    given = GivenLoras.parse(map(str, files))
    for name, strength in given.strengths.items():
        if strength is not None:
            file = given.files[name].path
            raise RequestError(f"--lora {file}:{strength:g}: requests give the strength. Name the file alone: {file}")
    for one in given.files.values():
        rank_of(one)  # reads the header
    return tuple(files)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """In the `with` block, SIGINT and SIGTERM end the process with 0; a server that runs has its drain there."""

    def leave(number: int, frame: object) -> None:
        raise SystemExit(0)

    before = {number: signal.signal(number, leave) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def check_installed() -> None:
    """Raise `BackendError` if the extra is not installed."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise BackendError(f"serving needs {', '.join(missing)}. Install with: pip install 'latentrt[serve]'")


def named_bundles(folders: list[Path]) -> dict[str, Path]:
    """Bundles by the names that requests use: those of their folders. The demo is made if it is missing.

    Raises:
        BundleError: one is not a bundle.
        RequestError: two have the same name.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        is_demo = str(folder) == DEMO and bundle_folder(folder) != folder
        path = (_demo() if is_demo else Bundle.open(folder)).path.resolve()
        if path.name in found:
            raise RequestError(f"{path.name}: two bundles of this name; requests could not tell them apart. Rename one")
        found[path.name] = path
    return found


def _demo() -> Bundle:
    """The demo's bundle; one that this version made is not compared with the checkpoint, so that torch stays out."""
    if is_bundle(demo_folder()):
        kept = Bundle.open(demo_folder())
        if kept.manifest.latentrt == version("latentrt"):
            return kept
    log.info("no demo here yet: it is exported first, which takes half a minute to a minute")
    started = time.monotonic()
    made = demo_bundle()
    log.info("the demo is exported", extra={"seconds": round(time.monotonic() - started, 1)})
    return made


async def _run(
    desk: "Desk", host: str, listening: socket.socket, api_key: str | None, tls: tuple[str | None, str | None]
) -> None:
    from latentrt.serve.server import run_server

    ready = asyncio.Event()
    shown = f"[{host}]" if ":" in host else host
    address = f"http{'s' if tls[0] else ''}://{shown}:{listening.getsockname()[1]}"
    saying = asyncio.ensure_future(_say_when_ready(ready, address))
    try:
        await run_server(desk, [listening], api_key=api_key, certificate=tls[0], private_key=tls[1], ready=ready)
    finally:
        saying.cancel()


async def _say_when_ready(ready: asyncio.Event, address: str) -> None:
    await ready.wait()
    sys.stdout.write(f"latentrt serves on {address}{os.linesep}")
    sys.stdout.flush()
