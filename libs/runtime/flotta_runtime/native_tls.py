"""TLS for the native half: made of what a process's files hold, and kept up when they are replaced."""

from __future__ import annotations

from weakref import WeakKeyDictionary

import flotta_native

from flotta_runtime.errors import StartupError
from flotta_runtime.tls import Tls, TlsContent

_clients: WeakKeyDictionary[Tls, flotta_native.ClientTls] = WeakKeyDictionary()


def server_tls(tls: Tls | None) -> flotta_native.ServerTls | None:
    """For a native port; None if it speaks in the clear. Replaced files are used for its new connections."""
    if tls is None or not tls.serves:
        return None
    content = tls.content
    try:
        made = flotta_native.ServerTls(content.cert, content.key, content.client_ca or None)
    except ValueError as error:
        raise StartupError(f"tls_cert_file {tls.files.cert_file} cannot be used: {error}") from error

    def replace(new: TlsContent) -> None:
        made.replace(new.cert, new.key, new.client_ca or None)

    tls.on_change(replace)
    return made


def client_tls(tls: Tls | None) -> flotta_native.ClientTls | None:
    """For links to other processes; None if they go in the clear. The same one each time; replaced files are used for
    links made from then on."""
    if tls is None or not tls.dials:
        return None
    found = _clients.get(tls)
    if found is None:
        content = tls.content
        try:
            found = flotta_native.ClientTls(
                content.ca, content.cert or None, content.key or None, tls.files.server_name
            )
        except ValueError as error:
            raise StartupError(f"tls_ca_file {tls.files.ca_file} cannot be used: {error}") from error
        made = _clients[tls] = found

        def replace(new: TlsContent) -> None:
            made.replace(new.ca, new.cert or None, new.key or None)

        tls.on_change(replace)
    return found
