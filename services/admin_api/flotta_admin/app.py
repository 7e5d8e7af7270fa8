"""The FastAPI application: routes, error bodies and an OpenAPI description that says only what is true."""

from __future__ import annotations

from importlib import metadata
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import APIKeyHeader

from flotta_admin import http_errors
from flotta_admin.json_response import PrettyJson
from flotta_admin.routes import GUARDED, Context, actuator, backups, cluster, nodes, operations, shards

DESCRIPTION = """
Registers storage nodes, creates the shards, and shows and changes the shard map of a Flotta cluster.

Callers need the header `X-Admin-Api-Key` and an address on the allowlist. `X-Correlation-ID` is echoed, or made.
Every error but 401 and 403 has the body `ErrorBody`; a 4xx changed nothing.
"""


def make_app(context: Context) -> FastAPI:
    """The application over `context`; `guard.Guard` goes around it."""
    app = FastAPI(
        title="Flotta admin API",
        version=metadata.version("flotta"),
        description=DESCRIPTION,
        default_response_class=PrettyJson,
        redirect_slashes=False,
        strict_content_type=False,  # a body without a Content-Type is taken for JSON
        redoc_url=None,
        swagger_ui_oauth2_redirect_url=None,
        separate_input_output_schemas=False,
    )
    http_errors.install(app)
    # The guard checks the key; declared here so that the description and its "Authorize" button know of it.
    key = Depends(APIKeyHeader(name="X-Admin-Api-Key", auto_error=False, description="The admin API key."))
    for subject in (cluster, nodes, shards, operations, backups):
        app.include_router(subject.router(context), dependencies=[key], responses=GUARDED)
    app.include_router(actuator.router(context))
    app.openapi = lambda: _describe(app)  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """FastAPI's description without the 422 it assumes: here a bad request is a 400 with our own body."""
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation["responses"].pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(name, None)
        app.openapi_schema = schema
    return app.openapi_schema
