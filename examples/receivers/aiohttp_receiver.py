"""A receiver of cutoffs, restores and notices on aiohttp: switches machines off and on, and reports rate 0.

    CUTOFF_SECRET=whsec_… PORT=8090 python aiohttp_receiver.py

The daemon has `cutoff.url = "http://127.0.0.1:8090/cutoff"`, `cutoff.restore_url = "http://127.0.0.1:8090/restore"` and
`notify.url = "http://127.0.0.1:8090/notices"`.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from weakref import WeakValueDictionary

from aiohttp import web

from billing.client import BillingError, Client
from billing.client.receiver import NotGenuine, Receiver

CLIENT = web.AppKey("client", Client)
receiver = Receiver(os.environ["CUTOFF_SECRET"])  # with a mapping onto your database, so that seq is not forgotten

# One call of a user at a time: one that the daemon gave up waiting for may still be at work when the next one comes.
turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()


async def switch_off(client: Client, user: str) -> None:
    """Stops the user's machines, then says that they cost nothing any more. Harmless to do twice."""
    print("off", user, flush=True)  # here the machines are stopped
    account = await client.get_account(user)
    for line in account.rates:
        await client.set_rate(user, "0", resource=line)


async def take_call(request: web.Request) -> web.Response:
    """A cutoff, or the restore of one."""
    try:
        call = receiver.call(request.raw_path, request.headers, await request.read(), now_s=time.time())
    except NotGenuine:
        return web.Response(status=401)
    async with turns.setdefault(call.user_id, asyncio.Lock()):
        if receiver.is_due(call):
            if call.is_restore:
                print("on", call.user_id, flush=True)  # here the machines are started, and their rates reported
            else:
                try:
                    await switch_off(request.app[CLIENT], call.user_id)
                except BillingError as error:
                    return web.Response(status=503, text=str(error))  # the daemon calls again
            receiver.done(call)
    return web.Response(status=204)


async def take_notice(request: web.Request) -> web.Response:
    """What happened to an account."""
    try:
        notice = receiver.notice(request.headers, await request.read(), now_s=time.time())
    except NotGenuine:
        return web.Response(status=401)
    if receiver.is_due(notice):
        print("notice", notice.type, notice.data["user_id"], flush=True)  # here the user is written to
        receiver.done(notice)
    return web.Response(status=204)


async def connection(application: web.Application) -> AsyncIterator[None]:
    """The client, for as long as the application runs. Its first call connects: the daemon may be started later."""
    client = application[CLIENT] = Client(os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311"))
    yield
    client.close()


def main() -> None:
    application = web.Application()
    application.cleanup_ctx.append(connection)
    for path in ("/cutoff", "/restore"):
        application.router.add_route("*", path, take_call)
    application.router.add_post("/notices", take_notice)
    web.run_app(application, host="127.0.0.1", port=int(os.environ["PORT"]), print=None)


if __name__ == "__main__":
    main()
