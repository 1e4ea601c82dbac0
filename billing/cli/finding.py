"""One rule by which every command finds the configuration and, by it, the daemon.

The configuration is `--config FILE`, else BILLING_CONFIG, else `config.toml` of the working directory, else
`/etc/billing/config.toml`, else there is none and the defaults hold. `BILLING_SECTION__KEY` overrides a key of it.

The daemon is where `--address` says; else where the configuration that `--config` names listens; else where
BILLING_ADDRESS says; else where the configuration that was found listens; else at the default of `rpc.listen`.

Only the few keys that say so are read, with the standard library: a command that asks one question starts in the time
of that question. Where the file is wrong, the full loader names the fault.
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
    """What a configuration says about calling its daemon."""

    address: str  # host:port or unix:/path
    by_tls: bool
    told_by: str  # where the address stands, for people


def config_file(file: str | Path | None, environ: Mapping[str, str]) -> Path | None:
    """The configuration file, None where there is none."""
    if file is not None:
        return Path(file)
    if named := environ.get("BILLING_CONFIG"):
        return Path(named)
    return next((path for path in (HERE, SYSTEM) if path.is_file()), None)


def listening(file: Path | None, environ: Mapping[str, str]) -> Listening:
    """Where the daemon of this configuration listens. Raises ConfigError where the configuration cannot be read, and
    ValueError where nobody can know it from the configuration.
    """
    listen = setting(file, environ, "rpc", "listen")
    unix_socket = setting(file, environ, "rpc", "unix_socket") or ""
    by_tls = bool(setting(file, environ, "rpc", "tls_cert"))
    told_by = f"rpc.listen of {file}" if file is not None else "the default"
    if "BILLING_RPC__LISTEN" in environ:
        told_by = "BILLING_RPC__LISTEN"
    if unix_socket and (listen == "" or by_tls):  # the socket needs no certificate
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
    """One text of the configuration; None where it is not set. Raises ConfigError where the file cannot be read."""
    if (text := environ.get(f"BILLING_{section}__{key}".upper())) is not None:
        return text
    if file is None:
        return None
    try:
        with open(file, "rb") as opened:
            value = tomllib.load(opened).get(section, {}).get(key)
    except (OSError, ValueError, RecursionError, AttributeError):
        value = file  # no text: the full loader knows better what is wrong
    if value is not None and not isinstance(value, str):
        from billing.config.load import load

        value = getattr(getattr(load(file, environ).config, section), key)
    return value if value is None else str(value)
