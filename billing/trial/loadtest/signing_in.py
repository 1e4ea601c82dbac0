"""How a daemon that runs already is called by the load test and its generators: with which token, and by which TLS."""

from __future__ import annotations

import ssl

import msgspec

from billing.client.client import Client
from billing.client.connection import tls_context


class SignIn(msgspec.Struct, frozen=True):
    """What is shown to the daemon. `tls_ca` and `tls_cert` name PEM files; either of them asks for TLS, too."""

    token: str | None = None
    tls: bool = False
    tls_ca: str | None = None
    tls_cert: str | None = None

    def context(self) -> ssl.SSLContext | None:
        """None for plain TCP; OSError where a file is not what it should be."""
        uses_tls = self.tls or self.tls_ca is not None or self.tls_cert is not None
        return tls_context(self.tls_ca, self.tls_cert) if uses_tls else None

    def client(self, address: str) -> Client:
        """A client that signs in so, whatever token the environment has: that may be another daemon's."""
        return Client(address, token=self.token, environment={}, tls=self.context())
