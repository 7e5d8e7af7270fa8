"""Secrets of a local cluster: made once, kept in the data directory, readable by their owner alone."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from flotta_runtime.errors import StartupError

TOKEN_FILE = "internal-grpc-token"
API_KEY_FILE = "admin-api-key"


def read_or_make(path: Path) -> str:
    """The secret in `path`, made with mode 0600 if there is none. StartupError for one that others can read."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path)
    except OSError as error:
        raise StartupError(f"{path} cannot be made: {error.strerror}") from error
    secret = secrets.token_urlsafe(32)
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(secret + "\n")
        file.flush()
        os.fsync(file.fileno())
    return secret


def _read(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise StartupError(f"{path} can be read by others; make it private with: chmod 600 {path}")
        secret = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StartupError(f"{path} cannot be read: {error}") from error
    if not secret:
        raise StartupError(f"{path} is empty; remove it, and a new one is made")
    return secret
