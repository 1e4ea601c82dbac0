"""`billing token add|list|revoke`: the tokens by which callers sign in, in the tokens file of the configuration.

The file holds only hashes; the token itself is printed once, when it is made, and is stored nowhere. The file is never
half written: the command writes the new content to a file beside it, syncs that, and renames it over the old file, with
mode 0600 or the old file's mode and owner. Two commands at once wait for each other. Before it writes, the command
parses the new content with the daemon's own parser. Comments and the order of lines stay. A running daemon reads the
file again when it reloads.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from billing.api.auth import NAME, NAME_IS, Guard, TokensError
from billing.api.iproto.protocol import proof_of
from billing.api.methods import ADMIN, CHARGE, READ, TOP_UP
from billing.cli.confirming import confirmed
from billing.cli.finding import config_file as found_config
from billing.cli.finding import setting
from billing.cli.options import OUTPUT_OPTIONS, YES, Group, config_option, option
from billing.cli.output import as_json, put, say
from billing.cli.tables import TEXT, Column, draw

TOKEN_BYTES = 32
RELOAD = (
    "A daemon that runs takes it up at SIGHUP; a service of systemd, which reads a copy made at its start, when it is "
    "restarted: systemctl restart billing."
)

_file_option = option("--file", metavar="FILE", help="The tokens file.  [rpc.tokens_file of the configuration]")
_json_option = OUTPUT_OPTIONS[0]


@click.group(cls=Group)
def token() -> None:
    """Makes, lists and revokes the tokens by which callers sign in."""


@token.command()
@click.argument("name")
@option(
    "--role",
    "roles",
    multiple=True,
    required=True,
    type=click.Choice([READ, CHARGE, TOP_UP, ADMIN]),
    help="What its bearer may do; may be given several times. read: questions; charge: rates, debits and holds; "
    "top_up: adding money; admin: everything.",
)
@_file_option
@_json_option
@config_option
def add(name: str, roles: tuple[str, ...], file: str | None, as_json: bool, config_file: str | None) -> None:
    """Makes a token called NAME and prints it, once: it cannot be shown again.

    The operators' record (billing audit) shows the name beside what was done with the token.
    """
    if not NAME.fullmatch(name):
        raise click.UsageError(f"a name has {NAME_IS}")
    secret = secrets.token_urlsafe(TOKEN_BYTES)
    proof = proof_of(secret.encode()).hex()
    line = f"{name}:{','.join(dict.fromkeys(roles))}:{hashlib.sha256(secret.encode()).hexdigest()}:{proof}"

    def added(lines: list[str]) -> list[str]:
        if any(_name_of(known_line) == name for known_line in lines):
            raise click.ClickException(f"there is a token called {name} already; `billing token revoke {name}` ends it")
        return [*lines, line]

    path = _path(file, config_file)
    _change(path, added)
    _tell(secret, {"name": name, "roles": list(dict.fromkeys(roles)), "token": secret}, as_json)
    say(f"{path} knows it as {name}. {RELOAD}")


@token.command("list")
@_file_option
@_json_option
@config_option
def list_tokens(file: str | None, as_json: bool, config_file: str | None) -> None:
    """Lists the names of the tokens and what their bearers may do."""
    path = _path(file, config_file)
    rows = [line.split(":") for line in _read(path) if _name_of(line)]
    if as_json:
        _put_json([{"name": row[0], "roles": row[1].split(",")} for row in rows])
        return
    columns = [
        Column("name", TEXT, [row[0] for row in rows]),
        Column("roles", TEXT, [row[1].replace(",", ", ") for row in rows]),
    ]
    put(
        "\n".join(draw(columns, None).lines)
        if rows
        else f"there are no tokens in {path}" + ("" if path.exists() else ", which is not there")
    )


@token.command()
@click.argument("name")
@YES
@_file_option
@config_option
def revoke(name: str, yes: bool, file: str | None, config_file: str | None) -> None:
    """Ends the token called NAME; asks first."""
    path = _path(file, config_file)

    def without(lines: list[str]) -> list[str]:
        remaining = [line for line in lines if _name_of(line) != name]
        if len(remaining) == len(lines):
            raise click.ClickException(f"{path} has no token called {name}")
        return remaining

    without(_read(path))
    confirmed(lambda: f"Whoever signs in as {name} will be refused. Revoke the token?", yes)
    _change(path, without)
    say(f"{name} is revoked in {path}. {RELOAD}")


def _tell(secret: str, as_map: dict[str, Any], as_json: bool) -> None:
    if as_json:
        _put_json(as_map)
    else:
        put(secret)


def _put_json(value: Any) -> None:
    put(as_json(value))


def _path(file: str | None, config_file: str | None) -> Path:
    """The path of the tokens file. Raises click.UsageError if neither `--file` nor the configuration names one."""
    if file is not None:
        return Path(file)
    config = found_config(config_file, os.environ)
    named = setting(config, os.environ, "rpc", "tokens_file")
    if not named:
        raise click.UsageError(
            f"{config or 'the default configuration'} names no rpc.tokens_file: set it, or name the file with --file"
        )
    return (config.parent if config is not None else Path()).absolute() / named


def _name_of(line: str) -> str:
    """The name of the token in a line of the file; "" for a comment or an empty line."""
    text = line.strip()
    return "" if not text or text.startswith("#") else text.partition(":")[0]


def _read(path: Path) -> list[str]:
    """The lines of the file; none if it does not exist. Raises click.ClickException if it is unreadable or
    malformed.
    """
    try:
        with open(path, encoding="utf-8") as opened:
            text = opened.read()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeError) as error:
        raise click.ClickException(f"{path} cannot be read: {error}") from None
    if any(_name_of(line) for line in text.splitlines()):
        _parsed(path, text)
    return text.splitlines()


def _parsed(path: Path, text: str) -> None:
    try:
        Guard(text)
    except TokensError as error:
        raise click.ClickException(f"{path}: {error}") from None


def _change(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    """Replaces the file by one with the lines that `change` returns. Raises click.ClickException."""
    try:
        with _held(path):
            text = "".join(f"{line}\n" for line in change(_read(path)))
            _parsed(path, text)
            _replace(path, text)
    except OSError as error:
        raise click.ClickException(f"{path} cannot be written: {error}; it is as it was") from None


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Locks out other commands. The lock is on the folder, since the file itself is replaced."""
    import fcntl

    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        yield
    finally:
        os.close(folder)


def _replace(path: Path, text: str) -> None:
    real = path.resolve()
    temporary = real.with_name(f".{real.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as opened:
            if real.exists():
                old = os.stat(real)
                os.fchmod(descriptor, old.st_mode & 0o640)
                if (old.st_uid, old.st_gid) != (os.geteuid(), os.getegid()):
                    os.fchown(descriptor, old.st_uid, old.st_gid)
            opened.write(text)
            opened.flush()
            os.fsync(descriptor)
        os.rename(temporary, real)
    except BaseException:
        os.unlink(temporary)
        raise
    folder = os.open(real.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


for command in token.commands.values():
    token.hands_on(command.params)

COMMANDS: dict[str, click.Command] = {"token": token}
