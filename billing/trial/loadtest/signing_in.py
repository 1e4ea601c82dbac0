"""The token and the TLS settings with which the load test and its generators call a daemon that runs already."""

from __future__ import annotations

import ssl

import msgspec

from billing.client.client import Client
from billing.client.connection import tls_context


class SignIn(msgspec.Struct, frozen=True):
    """The token and TLS settings. `tls_ca` and `tls_cert` name PEM files; either of them implies TLS."""

    token: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """The TLS context; None for plain TCP. Raises OSError if a PEM file is not valid."""
        uses_tls = self.tls or self.tls_ca is not None or self.tls_cert is not None
        return tls_context(self.tls_ca, self.tls_cert) if uses_tls else None

    def client(self, address: str) -> Client:
        """A client with this token and TLS. It ignores a token in the environment, which may be for another daemon."""
        return Client(address, token=self.token, environment={}, tls=self.context())
