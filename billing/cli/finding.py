"""Finds the configuration and the address of the daemon, by one rule for all commands.

The configuration is `--config FILE`, else the file that BILLING_CONFIG names, else `config.toml` in the working
directory, else `/etc/billing/config.toml`; without any of these the defaults hold. `BILLING_SECTION__KEY` overrides a
key.

The address of the daemon is `--address`; else the address in the configuration that `--config` names; else
BILLING_ADDRESS; else the address in the configuration that was found; else the default of `rpc.listen`.

This module reads only the few keys that name the address, with the standard library, so that a command with a single
call starts quickly. If the file is faulty, it calls the full loader, which reports the fault.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from billing.addresses import parse_listen

ADDRESS_DEFAULT: Final = "127.0.0.1:3311"
HERE: Final = Path("config.toml")
SYSTEM: Final = Path("/etc/billing/config.toml")
RULE: Final = (
    "Without it: BILLING_CONFIG, else ./config.toml, else /etc/billing/config.toml, else the defaults. "
    "BILLING_SECTION__KEY overrides a key."
)
_ANY_HOST: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class Listening(NamedTuple):
    """How to call the daemon of a configuration."""

    address: str  # host:port or unix:/path
    by_tls: bool
    told_by: str  # the source of the address, in words


def config_file(file: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file by the rule above; None if there is none. `file`: the one that `--config` names."""
    if file is not None:
        return Path(file)
    if named := environ.get("BILLING_CONFIG"):
        return Path(named)
    return next((path for path in (HERE, SYSTEM) if path.is_file()), None)


def listening(file: Path | None, environ: Mapping[str, str]) -> Listening:
    """The address at which the daemon of this configuration listens. Raises ConfigError if the configuration cannot be
    read, and ValueError if it does not determine the address (port 0).
    """
    listen = setting(file, environ, "rpc", "listen")
    unix_socket = setting(file, environ, "rpc", "unix_socket") or ""
    by_tls = bool(setting(file, environ, "rpc", "tls_cert"))
    told_by = f"rpc.listen of {file}" if file is not None else "the default"
    if "BILLING_RPC__LISTEN" in environ:
        told_by = "BILLING_RPC__LISTEN"
    if unix_socket and (listen == "" or by_tls):  # preferred to TLS, since the socket needs no certificate
        folder = file.parent if file is not None else Path()
        return Listening(
            f"unix:{os.path.normpath(folder.absolute() / unix_socket)}", False, f"rpc.unix_socket of {file}"
        )
    host, port = parse_listen(listen or ADDRESS_DEFAULT)
    if port == 0:
        raise ValueError(f"{told_by} takes a free port, which only the daemon's log knows")
    host = _ANY_HOST.get(host, host)
    return Listening(f"[{host}]:{port}" if ":" in host else f"{host}:{port}", by_tls, told_by)


def setting(file: Path | None, environ: Mapping[str, str], section: str, key: str) -> str | None:
    """The text of one key; None if it is not set. Raises ConfigError if the file cannot be read."""
    if (text := environ.get(f"BILLING_{section}__{key}".upper())) is not None:
        return text
    if file is None:
        return None
    try:
        with open(file, "rb") as opened:
            value = tomllib.load(opened).get(section, {}).get(key)
    except (OSError, ValueError, RecursionError, AttributeError):
        value = file  # not a text: makes the code below call the full loader, which reports the fault
    if value is not None and not isinstance(value, str):
        from billing.config.load import load

        value = getattr(getattr(load(file, environ).config, section), key)
    return value if value is None else os.fsdecode(str(value).encode())  # the file is UTF-8; this process may not be
