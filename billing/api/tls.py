"""TLS contexts of the doors: TLS 1.3 only. With `tls_client_ca`, every client needs a certificate of that authority."""

from __future__ import annotations

import ssl
from typing import Protocol


class Files(Protocol):
    """The keys of the configuration for TLS: names of PEM files, empty for none."""

    @property
    def tls_cert(self) -> str: ...

    @property
    def tls_key(self) -> str: ...

    @property
    def tls_client_ca(self) -> str: ...


def server_context(files: Files) -> ssl.SSLContext | None:
    """Returns the TLS context of the listeners; None without a certificate."""
    if not files.tls_cert:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_cert_chain(files.tls_cert, files.tls_key)
    if files.tls_client_ca:
        context.load_verify_locations(files.tls_client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context
