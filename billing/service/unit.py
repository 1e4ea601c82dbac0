"""`billing install-unit` prints the systemd unit that runs the daemon with a given configuration.

Secret files that the configuration names (`SECRETS`) become credentials: systemd reads them as root and gives copies to
the daemon alone. If the configuration names every peer by number, the unit allows these addresses only, in both
directions.

The unit omits some settings on purpose: `PrivateUsers=` (every peer of the unix socket would appear as the user
nobody), `ProcSubset=pid` (it hides the boot id, by which recovery distinguishes a torn journal from a damaged one),
`~@resources` (the history's process raises its own nice value). `KillMode=mixed` lets the main process end its workers
in order.
"""

from __future__ import annotations

import ipaddress
import os
import shlex
import sys
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import click

from billing.addresses import parse_listen
from billing.cli.finding import RULE, config_file
from billing.cli.options import Command
from billing.cli.output import put, say
from billing.config.doors import listens_of
from billing.config.load import load
from billing.config.schema import SECRET, Config, declared
from shards.system.host import resolved

CONFIG_FILE: Final = Path("/etc/billing/config.toml")
SECRETS: Final = tuple(path for path, declaration in declared() if SECRET in declaration.marks)

SERVICE: Final = """\
# Real-time prepaid billing. To install:
#   billing install-unit --config {config} > /etc/systemd/system/billing.service
#   systemctl daemon-reload && systemctl enable --now billing
# Exit codes: 0 clean stop, 78 configuration, 65 damaged data, 74 disk failure, 70 a bug. After 65, 74 and 78 it is not
# started again: only a person can mend that. `systemctl reload billing` takes up what may change while it serves.

[Unit]
Description=Real-time prepaid billing
Wants=network-online.target time-sync.target
After=network-online.target time-sync.target
StartLimitIntervalSec=300
StartLimitBurst=10

[Service]
Type=notify
NotifyAccess=main
ExecStart={python} -I -m billing serve --config {config_word}
ExecReload=/bin/kill -HUP $MAINPID
KillMode=mixed
Restart=always
RestartSec=1
RestartPreventExitStatus=65 74 78
# Every start is extended while recovery goes on; a stop answers what was asked and makes a snapshot.
TimeoutStartSec=60
TimeoutStopSec=180
# Fed while every worker's loop turns and the disk answers.
WatchdogSec=60

DynamicUser=yes
User=billing
StateDirectory=billing
StateDirectoryMode=0700
RuntimeDirectory=billing
RuntimeDirectoryMode=0750
UMask=0077
Environment=BILLING_DAEMON__DATA_DIR=%S/billing
{credentials}
LimitNOFILE=65536
LimitCORE=0
# One worker out of memory is restarted by the daemon; the others go on.
OOMPolicy=continue
OOMScoreAdjust=-500

NoNewPrivileges=yes
CapabilityBoundingSet=
AmbientCapabilities=
ProtectSystem=strict
ProtectHome=yes
PrivateTmp=yes
PrivateMounts=yes
PrivateDevices=yes
DevicePolicy=closed
ProtectKernelTunables=yes
ProtectKernelModules=yes
ProtectKernelLogs=yes
ProtectControlGroups=yes
{clock}
ProtectHostname=yes
ProtectProc=invisible
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RemoveIPC=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
KeyringMode=private
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
{addresses}
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
{calls}SystemCallErrorNumber=EPERM

[Install]
WantedBy=multi-user.target
"""

OWN_CLOCK: Final = "ProtectClock=yes"
SHARED_CLOCK: Final = "# The kernel is asked how wrong its clock may be; nothing here has the right to set it."
CLOCK_CALLS: Final = "SystemCallFilter=adjtimex clock_adjtime\n"

SOCKET: Final = """\
# The daemon's sockets, held by systemd: clients queue while the daemon restarts. To install:
#   billing install-unit --socket --config {config} > /etc/systemd/system/billing.socket
#   systemctl daemon-reload && systemctl enable --now billing.socket

[Unit]
Description=Sockets of real-time prepaid billing

[Socket]
{listens}
SocketMode=0660
Backlog=4096
NoDelay=yes

[Install]
WantedBy=sockets.target
"""


def service_unit(config: Config, file: Path, python: str) -> str:
    """The .service unit."""
    credentials = []
    for path in SECRETS:
        section, key = path.split(".")
        name = getattr(getattr(config, section), key)
        if name:
            credential = path.replace(".", "-")
            credentials.append(f"LoadCredential={credential}:{plain(name)}")
            credentials.append(f"Environment=BILLING_{section.upper()}__{key.upper()}=%d/{credential}")
    if credentials:
        credentials.insert(0, "# Copies made at each start: a changed secret needs `systemctl restart billing`.")
    allowed = addresses_of(config)
    if allowed is None:
        addresses = "# A host is named, not numbered: IPAddressDeny=any and IPAddressAllow= would narrow this further."
    else:
        addresses = "IPAddressDeny=any\nIPAddressAllow=" + " ".join(allowed)
    secrets = "\n".join(credentials) or "# No secret is configured."
    return SERVICE.format(
        config=shlex.quote(str(file)),
        config_word=word(str(file)),
        python=word(python),
        credentials=secrets,
        addresses=addresses,
        clock=SHARED_CLOCK if config.journal.is_shared else OWN_CLOCK,
        calls=CLOCK_CALLS if config.journal.is_shared else "",
    )


def socket_unit(config: Config, file: Path) -> str:
    """The .socket unit, for the addresses of the configuration. Raises click.ClickException for those that systemd does
    not listen on.
    """
    listens = [
        *(numbered(f"{section}.listen", listen) for section, listen in listens_of(config).items() if listen),
        *([config.rpc.unix_socket] if config.rpc.unix_socket else []),
    ]
    streams = "\n".join(f"ListenStream={plain(listen)}" for listen in listens)
    return SOCKET.format(config=shlex.quote(str(file)), listens=streams)


def numbered(path: str, listen: str) -> str:
    """The address as systemd takes it, with a number for the name of a host (systemd.socket, "ListenStream="). Raises
    click.ClickException.
    """
    address = parse_listen(listen)
    if not address.port:
        raise click.ClickException(f"{path}: expected a port for a unit of sockets, got {listen}")
    try:
        host = str(resolved(*address)[1][0])
    except (OSError, UnicodeError) as error:
        raise click.ClickException(f"{path}: the host of {listen} has no address: {error}") from None
    return f"[{host}]:{address.port}" if ":" in host else f"{host}:{address.port}"


def plain(text: str) -> str:
    """Escapes specifiers (`%`) in a value that systemd otherwise takes literally, to the end of the line."""
    return text.replace("%", "%%")


def word(text: str) -> str:
    """One word of a command line in a unit (systemd.service, "Command lines"), quoted if it has to be."""
    escaped = plain(text).replace("$", "$$")
    if escaped and not set(escaped) & set(" \t\"'\\;"):
        return escaped
    return '"' + escaped.replace("\\", "\\\\").replace('"', '\\"') + '"'


def addresses_of(config: Config) -> list[str] | None:
    """The addresses that the daemon may exchange packets with, sorted. None if a peer is configured by name, or if a
    door listens beyond loopback, so that clients may come from any address.
    """
    addresses = {"localhost"}
    links = [config.cluster.listen] if config.journal.is_shared else []
    for listen in (*listens_of(config).values(), *links):
        if listen and not parse_listen(listen).loopback:
            return None
    servers = config.cluster.servers if config.journal.is_shared else []
    for url in (config.cutoff.url, config.cutoff.restore_url, config.notify.url, *servers):
        if not url:
            continue
        host = urlsplit(url).hostname or ""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            if host != "localhost":
                return None
        else:
            if not address.is_loopback:
                addresses.add(str(address))
    return sorted(addresses)


STATE_DIRECTORY: Final = "/var/lib/billing"  # %S/billing of the unit
OTHER_DIRECTORY: Final = (
    f"the service keeps its data in {STATE_DIRECTORY}, and {{file}} says {{data_dir}}: set daemon.data_dir to the "
    "former, so that restore, doctor and audit look where the service does"
)
HIDDEN: Final = tuple(map(Path, ("/home", "/root", "/run/user")))  # ProtectHome=yes hides these from the service
HIDDEN_PYTHON: Final = (
    "the unit runs {python}, which is {interpreter}: no service sees what lies below {home}, so it would not start. "
    "Make the environment with another Python, such as /usr/bin/python3, in a directory such as /opt/billing"
)


def hidden_python(python: Path, interpreter: Path) -> str | None:
    """The warning about a Python that the service could not start, because `python` of the environment, or the
    `interpreter` that it links to, lies in a directory hidden from the service. None if both can be started.
    """
    for home in HIDDEN:
        if python.is_relative_to(home) or interpreter.is_relative_to(home):
            return HIDDEN_PYTHON.format(python=python, interpreter=interpreter, home=home)
    return None


@click.command("install-unit", cls=Command)
@click.option(
    "--config",
    "file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help=f"The configuration that the unit runs with. {RULE}",
)
@click.option("--socket", "as_socket", is_flag=True, help="The unit of its sockets instead.")
def install_unit(file: Path | None, as_socket: bool) -> None:
    """Prints the systemd unit for a configuration."""
    path = config_file(file, os.environ)
    config = load(path, os.environ).config
    shown = (path or CONFIG_FILE).absolute()
    if config.daemon.data_dir != STATE_DIRECTORY and not as_socket:
        say(OTHER_DIRECTORY.format(file=shown, data_dir=config.daemon.data_dir))
    python = Path(sys.executable)
    if not as_socket and (warning := hidden_python(python, python.resolve())) is not None:
        say(warning)
    put(socket_unit(config, shown) if as_socket else service_unit(config, shown, sys.executable), newline=False)


COMMANDS: dict[str, click.Command] = {"install-unit": install_unit}
