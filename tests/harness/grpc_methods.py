"""A gRPC service of plain bytes for tests of the transports: handlers by name, in any of the four kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from flotta_runtime.server import Service

NAME = "test.Bytes"

Kind = Callable[..., Any]  # one of grpc's makers of method handlers
UNARY: Kind = grpc.unary_unary_rpc_method_handler
SERVER_STREAM: Kind = grpc.unary_stream_rpc_method_handler
CLIENT_STREAM: Kind = grpc.stream_unary_rpc_method_handler
BIDI: Kind = grpc.stream_stream_rpc_method_handler


def service(methods: Mapping[str, tuple[Kind, Any]]) -> Service:
    """For `build_server`: name → (kind, handler), bytes in and out."""

    def add(servicer: object, server: Any) -> None:
        handlers = {name: make(handler) for name, (make, handler) in methods.items()}
        server.add_registered_method_handlers(NAME, handlers)

    return add, object(), NAME


def path(name: str) -> str:
    return f"/{NAME}/{name}"


async def failure(call: Any) -> grpc.aio.AioRpcError:
    """The error that awaiting `call` ends with."""
    try:
        answer = await call
    except grpc.aio.AioRpcError as error:
        return error
    raise AssertionError(f"it answered {answer!r}")
