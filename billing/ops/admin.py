"""HTTP for operators on `admin.listen`.

    /livez    200 while the supervisor's loop turns
    /readyz   200 when every bucket is served, else 503 with one reason per line
"""

from __future__ import annotations

import asyncio
import socket

from aiohttp import web

from shards.supervisor import Supervisor


async def serve_admin(listener: socket.socket, supervisor: Supervisor) -> None:
    """Serves on a bound socket until cancelled."""

    async def livez(_: web.Request) -> web.Response:
        return web.Response(text="alive\n")

    async def readyz(_: web.Request) -> web.Response:
        reasons = supervisor.ready_reasons()
        if reasons:
            return web.Response(status=503, text="".join(f"{reason}\n" for reason in reasons))
        return web.Response(text="ready\n")

    application = web.Application()
    application.router.add_get("/livez", livez)
    application.router.add_get("/readyz", readyz)
    runner = web.AppRunner(application, access_log=None, handle_signals=False)
    await runner.setup()
    try:
        await web.SockSite(runner, listener).start()
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()
