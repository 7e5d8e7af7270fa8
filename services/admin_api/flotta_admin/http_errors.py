"""Every error as KvDB's error body, and every bad input as a 4xx that names the field."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from flotta_runtime.clock import SYSTEM_CLOCK
from flotta_runtime.errors import AlreadyExists, FlottaError, InvalidArgument, NotFound, PreconditionFailed
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from flotta_admin.core.models import ErrorBody
from flotta_admin.json_response import PrettyJson

_REJECTIONS: dict[str, type[FlottaError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "NOT_FOUND": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "FAILED_PRECONDITION": PreconditionFailed,
}
_METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
_NAMES = {400: "INVALID_ARGUMENT", 404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED", 413: "PAYLOAD_TOO_LARGE"}


class NotReadyYet(PreconditionFailed):
    """As 409: the one refusal, besides success, that KvDB's scripts expect of a shard-init."""

    http_status = 409


def check_accepted(reply: Any) -> None:
    """Raise what a refused mutation means. A coordinator that gives no reason code (KvDB's) refused a conflict."""
    if reply.success:
        return
    code = reply.rejection.code if reply.HasField("rejection") else "ALREADY_EXISTS"
    raise _REJECTIONS.get(code, PreconditionFailed)(reply.message or "the coordinator refused the change")


def body(error: str, message: str, status: int, *, hints: FlottaError | None = None) -> ErrorBody:
    """The error body of all errors but 401 and 403."""
    return ErrorBody(
        error=error,
        message=message,
        code=str(status),
        timestamp_ms=SYSTEM_CLOCK.wall_ms(),
        shard_id=hints.shard_id if hints is not None else None,
        leader_hint=hints.leader_hint if hints is not None else None,
        new_node_hint=hints.new_node_hint if hints is not None else None,
    )


def explain(error: RequestValidationError, whole: str) -> str:
    """The first thing wrong with a request, as a sentence that starts with the field. `whole` names the body itself,
    which is no field of anything when it is a list."""
    first = error.errors()[0]
    place, *path = first["loc"]
    problem = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return f"body: not valid JSON at character {path[0]}: {first['ctx']['error']}"
    if first["type"] == "value_error":
        return problem
    if place == "body" and (not path or isinstance(path[0], int)):
        name = f"{whole}[{path[0]}]" if path else whole
    else:
        name = ".".join(str(part) for part in path) if path else str(place)
    if first["type"] == "extra_forbidden":
        return f"{name}: there is no such field"
    if first["type"] == "missing":
        return f"{name}: the {'body' if not path else 'field'} is missing"
    shown = repr(first["input"])
    shown = shown if len(shown) <= 64 else shown[:64] + "…"
    return f"{name}: {problem[:1].lower()}{problem[1:]}, not {shown}"


def _body_name(request: Request) -> str:
    """What the route calls its body: `body`, or the name of the list that it is."""
    dependant = getattr(request.scope.get("route"), "dependant", None)
    return dependant.body_params[0].name if dependant is not None and dependant.body_params else "body"


def _allowed_methods(request: Request) -> str:
    """All methods of the path; the router itself names those of the first route only."""
    found = [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in request.app.routes)
    ]
    return ", ".join(found)


def install(app: FastAPI) -> None:
    """Register the handlers."""

    @app.exception_handler(FlottaError)
    async def on_flotta_error(request: Request, error: FlottaError) -> Response:
        headers = {"Retry-After": str(-(-error.retry_after_ms // 1000))} if error.retry_after_ms else None
        content = body(error.name, error.message, error.http_status, hints=error)
        return PrettyJson(content.model_dump(), status_code=error.http_status, headers=headers)

    @app.exception_handler(RequestValidationError)
    async def on_bad_request(request: Request, error: RequestValidationError) -> Response:
        kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
        if isinstance(error.body, bytes) and not kind.endswith("json"):
            text = f"body: it must be JSON, but the Content-Type is {kind[:64]!r}; send Content-Type: application/json"
            return PrettyJson(body("UNSUPPORTED_MEDIA_TYPE", text, 415).model_dump(), status_code=415)
        return PrettyJson(
            body("INVALID_ARGUMENT", explain(error, _body_name(request)), 400).model_dump(), status_code=400
        )

    @app.exception_handler(HTTPException)
    async def on_http_error(request: Request, error: HTTPException) -> Response:
        text = {
            400: "body: it cannot be read as JSON",
            404: f"there is nothing at {request.url.path}",
            405: f"{request.method} is not possible on {request.url.path}",
            413: "body: it is larger than the limit of 1048576 bytes",
        }.get(error.status_code, str(error.detail))
        content = body(_NAMES.get(error.status_code, "ERROR"), text, error.status_code)
        headers = {"Allow": _allowed_methods(request)} if error.status_code == 405 else error.headers
        return PrettyJson(content.model_dump(), status_code=error.status_code, headers=headers)

    @app.exception_handler(Exception)
    async def on_unexpected(request: Request, error: Exception) -> Response:
        content = body("INTERNAL_ERROR", "an unexpected error; the log has it under the correlation id", 500)
        return PrettyJson(content.model_dump(), status_code=500)
