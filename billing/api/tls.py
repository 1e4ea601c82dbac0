"""TLS contexts of the doors: TLS 1.3 only. With `tls_client_ca`, every client needs a certificate of that authority."""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator

from billing.config.schema import Config


def server_context(config: Config) -> ssl.SSLContext | None:
    """What listeners take; None without a certificate."""
    if not config.rpc.tls_cert:
        return None
    context = with_certificate(config)
    if config.rpc.tls_client_ca:
        believe(context, config)
    return context


def with_certificate(config: Config) -> ssl.SSLContext:
    """A context with the certificate and its key. Raises OSError, ValueError, KeyError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    files, rpc = config.files, config.rpc
    with _as_file(files[rpc.tls_cert]) as chain, _as_file(files[rpc.tls_key]) as key:
        context.load_cert_chain(chain, key, password=lambda: "")  # else it would ask for one at the terminal
    return context


def believe(context: ssl.SSLContext, config: Config) -> None:
    """Lets nobody in without a certificate of the authority. Raises OSError, ValueError, KeyError."""
    with _as_file(config.files[config.rpc.tls_client_ca]) as authority:
        context.load_verify_locations(authority)
    context.verify_mode = ssl.CERT_REQUIRED


@contextlib.contextmanager
def _as_file(content: bytes) -> Iterator[str]:
    """The path of a file in memory with this content: `ssl` takes certificates and keys by path alone."""
    descriptor = os.memfd_create("tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
