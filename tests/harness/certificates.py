"""Certificates for tests, made with the openssl command: an authority, and what it signs."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from flotta_runtime.tls import TlsFiles

_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


@dataclass(frozen=True)
class Pair:
    """A certificate and its key."""

    cert: Path
    key: Path


class Authority:
    """Signs certificates for loopback, under `folder`."""

    def __init__(self, folder: Path, name: str = "test-ca") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.cert, self._key = folder / "ca.pem", folder / "ca.key"
        _openssl(
            "req", "-x509", *_EC_KEY, "-keyout", self._key, "-out", self.cert, "-subj", f"/CN={name}", "-days", "30"
        )

    def sign(self, name: str, names: str = "DNS:localhost,IP:127.0.0.1,IP:::1") -> Pair:
        """A new certificate for `name` with these subject alternative names. The same name again makes new files."""
        cert, key, request = (self.folder / f"{name}.{ending}" for ending in ("pem", "key", "csr"))
        extensions = self.folder / f"{name}.ext"
        extensions.write_text(f"subjectAltName={names}\n")
        _openssl("req", *_EC_KEY, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.cert, "-CAkey", self._key, "-CAcreateserial"),
            *("-out", cert, "-days", "30", "-extfile", extensions),
        )
        return Pair(cert, key)

    def files(self, pair: Pair | None, *, mutual: bool = False, server_name: str | None = None) -> TlsFiles:
        """`pair` shown, this authority trusted; `mutual`: of clients too."""
        cert, key = (pair.cert, pair.key) if pair is not None else (None, None)
        return TlsFiles(cert, key, self.cert if mutual else None, self.cert, server_name)


def replace(pair: Pair, by: Pair) -> None:
    """As an operator does: each file in one step, the one after the other."""
    for old, new in ((pair.cert, by.cert), (pair.key, by.key)):
        fresh = old.with_suffix(".new")
        shutil.copy(new, fresh)
        fresh.replace(old)


def settings(files: TlsFiles) -> dict[str, Path | str]:
    """As fields of a service's settings."""
    found = {
        "tls_cert_file": files.cert_file,
        "tls_key_file": files.key_file,
        "tls_client_ca_file": files.client_ca_file,
        "tls_ca_file": files.ca_file,
        "tls_server_name": files.server_name,
    }
    return {name: value for name, value in found.items() if value is not None}


def _openssl(*words: str | Path) -> None:
    subprocess.run(["openssl", *map(str, words)], check=True, capture_output=True, timeout=60)
