"""What runs a server: health, readiness, metrics."""

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from latentrt.serve.http.waiting import desk_of

router = APIRouter(tags=["operations"])

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@router.get("/healthz", response_model=None)
async def health(request: Request) -> Response:
    """200 as long as the front answers."""
    return JSONResponse({"status": "ok"})


@router.get("/readyz", response_model=None, responses={503: {"description": "Loading, or going down."}})
async def readiness(request: Request) -> Response:
    """200 if requests are drawn now; 503 while models are loaded, and while the server goes down."""
    desk = desk_of(request)
    state = "draining" if desk.is_draining else "ready" if desk.is_ready else "loading"
    return JSONResponse({"status": state, "models": list(desk.models)}, 200 if state == "ready" else 503)


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Everything that Prometheus may want to know."""
    return Response(desk_of(request).metrics.text(), headers={"Content-Type": OPENMETRICS})
