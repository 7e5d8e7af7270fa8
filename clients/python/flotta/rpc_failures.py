"""What a call that grpc says failed means for the caller, whichever of grpc's two clients made it."""

from __future__ import annotations

from typing import NoReturn, cast

import grpc
from flotta_runtime.tls import Tls, hint

from flotta.errors import (
    InternalError,
    InvalidArgumentError,
    OutcomeUnknownError,
    PayloadTooLargeError,
    RateLimitedError,
    UnavailableError,
)

_LOST = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
_NO_ANSWER = (*_LOST, grpc.StatusCode.DEADLINE_EXCEEDED)


def code_of(error: grpc.RpcError) -> grpc.StatusCode:
    """The status of a failed call. Both clients raise an RpcError that is the call as well."""
    return cast("grpc.Call", error).code()


def details_of(error: grpc.RpcError) -> str:
    return str(cast("grpc.Call", error).details() or code_of(error).name)


def metadata_of(error: grpc.RpcError, name: str) -> str:
    """The first trailer of that name, or nothing."""
    trailers = cast("grpc.Call", error).trailing_metadata() or ()
    return next((str(value) for key, value in trailers if key == name), "")


def is_lost(error: grpc.RpcError) -> bool:
    """Whether the connection went, so that another attempt may fare better."""
    return code_of(error) in _LOST


def never_connected(error: grpc.RpcError) -> bool:
    """Whether not a byte of the request can have left."""
    return details_of(error).startswith("failed to connect to all addresses")


def raise_transport(error: grpc.RpcError, address: str, unsent: bool, tls: Tls | None) -> NoReturn:
    """Raise what a call to the gateway at `address` that ended so means. `unsent`: it was certainly not done."""
    code, details = code_of(error), details_of(error)
    if unsent:
        raise UnavailableError(f"no gateway can be reached at {address}: {details}{hint(tls, details)}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in details:
        raise PayloadTooLargeError(f"the request is too large for the gateway: {details}") from error
    if code is grpc.StatusCode.RESOURCE_EXHAUSTED:
        raise RateLimitedError(details) from error
    if code in _NO_ANSWER:
        raise OutcomeUnknownError(f"no answer from the gateway at {address}: {details}") from error
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        too_large = metadata_of(error, "x-flotta-error") == "PAYLOAD_TOO_LARGE"
        raise (PayloadTooLargeError if too_large else InvalidArgumentError)(details) from error
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise InvalidArgumentError(f"what listens at {address} is not a Flotta gateway: {details}") from error
    raise InternalError(f"the gateway at {address} answered {code.name}: {details}") from error
