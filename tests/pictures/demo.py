"""The demo's screen as SVG: the real scene with a real daemon, drawn by the demo's own screen when it is over."""

from __future__ import annotations

import os
from io import StringIO
from pathlib import Path

import aiohttp
from rich.console import Console
from rich.terminal_theme import MONOKAI

from billing.client.client import Client
from billing.trial.arrivals import ArrivalReader
from billing.trial.demo import play
from billing.trial.demo_screen import LiveScreen, SceneNotes
from billing.trial.own_daemon import OwnDaemon

WIDTH, HEIGHT = 96, 26
COMMANDS = [  # as they are where `billing` is in the path and the usual ports are free
    ("billing set-rate user_02 1", "it runs again, and out"),
    ("billing account user_02", "how it stands"),
    ("billing console", "then: watch user_02"),
]


async def draw_demo(file: Path) -> None:
    """Plays the scene and writes the last picture."""
    console = Console(width=WIDTH, height=HEIGHT, file=StringIO(), force_terminal=True, record=True)
    screen = LiveScreen(console, SceneNotes("http://127.0.0.1:9311/?user=user_01", COMMANDS))
    daemon = OwnDaemon(None, os.environ, free_ports=True)
    async with daemon, Client(daemon.rpc) as client, aiohttp.ClientSession() as session:
        reader = ArrivalReader(session, daemon.cutoff, daemon.config.cutoff.url)
        assert await play(daemon, client, reader, screen, once=True, pace=1.0) == 0, (
            "a cutoff was missing, early or false"
        )
    console.print(screen.picture())
    file.write_text(console.export_svg(title="billing demo", theme=MONOKAI))
