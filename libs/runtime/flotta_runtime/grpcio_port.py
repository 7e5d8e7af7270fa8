"""A gRPC port on grpcio: the reference that the native one is held against."""

from __future__ import annotations

import errno
import socket
from typing import Any

import grpc
import grpc.aio

from flotta_runtime.errors import StartupError
from flotta_runtime.settings import split_address
from flotta_runtime.tls import Tls


class GrpcioPort:
    """Made with its channel arguments; `add` every method, then `start`."""

    def __init__(self, options: list[tuple[str, Any]], calls_max: int | None, tls: Tls | None) -> None:
        self._server = grpc.aio.server(options=options, maximum_concurrent_rpcs=calls_max)
        self._tls = tls

    def add(self, path: str, handler: grpc.RpcMethodHandler[Any, Any], *, lasting: bool) -> None:
        """Serve `path` with `handler`. `lasting` makes no difference: a stop waits for every stream, for its grace."""
        _, service, name = path.split("/")
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(service, {name: handler})])

    async def start(self, listen: str) -> int:
        """Bind and serve; the bound port. StartupError names the address."""
        host, port = split_address(listen)
        if port:
            _check_free(host, port, listen)
        try:
            if self._tls is not None and self._tls.serves:
                bound = self._server.add_secure_port(listen, self._tls.server_credentials())
            else:
                bound = self._server.add_insecure_port(listen)
        except RuntimeError as error:
            raise StartupError(f"cannot listen on {listen} for gRPC: is another process using this port?") from error
        if bound == 0:
            raise StartupError(f"cannot listen on {listen} for gRPC: is another process using this port?")
        await self._server.start()
        return bound

    async def stop(self, grace_ms: int) -> None:
        """No new calls; those in flight may be answered within `grace_ms`, then they are cut off."""
        await self._server.stop(grace_ms / 1000 if grace_ms else None)


def _check_free(host: str, port: int, listen: str) -> None:
    """StartupError unless the port can be bound. gRPC would say no as well, but only after lines of its own."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise StartupError(f"the gRPC address {listen} cannot be used: {error.strerror or error}") from error
    for family, _, _, _, address in found:
        try:
            with socket.socket(family, socket.SOCK_STREAM) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and len(found) > 1:
                continue  # IPv6 may just not be there
            hint = "; is another process using this port?" if error.errno == errno.EADDRINUSE else ""
            raise StartupError(f"cannot listen on {listen} for gRPC: {error.strerror or error}{hint}") from error
