"""The ASGI app: every API on one desk, and what stands before them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles

from latentrt.runtime import __version__
from latentrt.serve.desk import Desk
from latentrt.serve.http import native, openai, operations, webui
from latentrt.serve.http.errors import add_error_answers
from latentrt.serve.http.guards import BodyLimit, KeyCheck, RequestIds

PAGE = Path(__file__).with_name("page")
"""Static files of a page at `/`, if there are any."""


def create_app(desk: Desk, api_key: str | None = None) -> FastAPI:
    """The app of a desk, which starts and stops with it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await desk.start()
        yield
        await desk.stop()

    app = FastAPI(title="latentrt", version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.desk = desk
    app.state.webui_model, app.state.webui_jobs = None, set()
    for module in (native, openai, webui, operations):
        app.include_router(module.router)
    add_error_answers(app)
    if PAGE.is_dir():
        app.mount("/", StaticFiles(directory=PAGE, html=True), name="page")
    app.add_middleware(BodyLimit, most=desk.limits.body_bytes)
    if api_key is not None:
        app.add_middleware(KeyCheck, key=api_key)
    app.add_middleware(RequestIds)
    return app
