"""What can go wrong, by what the caller can conclude from it.

Every error but `OutcomeUnknownError` and `InternalError` promises that a write was not done. A missing key is no
error: `get` and `delete` return None for it.
"""

from __future__ import annotations


class FlottaError(Exception):
    """Base of all errors of this client. `shard_id` is set where the answer named a shard."""

    def __init__(self, message: str, *, shard_id: str = "") -> None:
        super().__init__(message)
        self.shard_id = shard_id


class InvalidArgumentError(FlottaError):
    """The request can never succeed as it is; the message names the field and the limit."""


class PayloadTooLargeError(InvalidArgumentError):
    """The value is over the cluster's limit."""


class AlreadyExistsError(FlottaError):
    """`if_absent` met a key that is there."""


class VersionMismatchError(FlottaError):
    """`if_version` met another version, or no key at all."""


class PreconditionFailedError(FlottaError):
    """The cluster is not in the state that this request needs."""


class RateLimitedError(FlottaError):
    """The cluster has too much to do; try again after `retry_after_ms`."""

    def __init__(self, message: str, *, shard_id: str = "", retry_after_ms: int = 0) -> None:
        super().__init__(message, shard_id=shard_id)
        self.retry_after_ms = retry_after_ms


class UnavailableError(FlottaError):
    """It was not done, within the time given; it may work later."""


class OutcomeUnknownError(FlottaError):
    """No answer came in time. The write may have happened, or may still happen; a read was just not answered."""


class InternalError(FlottaError):
    """Something broke in the cluster; its logs say more."""
