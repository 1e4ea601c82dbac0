"""A controller of virtual machines: reports what runs, and switches off whose money ran out.

    CUTOFF_SECRET=whsec_… python vm_controller.py --port 8090

Set `cutoff.url = "http://127.0.0.1:8090/cutoff"` in the daemon's configuration, and `cutoff.secret_file` to a file with
the same secret. Orders come on standard input, a line each, and each is answered by a line:

    start USER MACHINE PRICE_PER_HOUR       started | refused, with the reason
    stop USER MACHINE                       stopped

Three things matter. **A machine is started only after the daemon has admitted it**: `min_runway_ns` refuses a rate for
which the money would not last an hour. **After a cutoff the rate of each machine is reported as 0**, and only then is
the call answered: where that fails the daemon calls again. **Every report carries `rate_seq`**, a number that rises, so
that a report which arrives late undoes no newer one.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Callable

from aiohttp import web

from billing.client import BillingError, Client, StaleRate
from billing.client.receiver import NotGenuine, Receiver

HOUR_NS = 3600 * 10**9


class Controller:
    """The machines that run, by user, and what was done about cutoffs."""

    def __init__(self, client: Client, secret: str, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._client = client
        self._receiver = Receiver(secret)
        self._running: dict[str, set[str]] = {}
        self._wall_ns = wall_ns
        self._rate_seq = 0  # of the last report

    def _next_seq(self) -> int:
        """The wall clock, so that it rises over restarts; one more than the last where that clock was set back."""
        self._rate_seq = max(self._rate_seq + 1, self._wall_ns())
        return self._rate_seq

    async def start(self, user: str, machine: str, price: str) -> str:
        """Starts a machine where the user's money lasts for an hour of it; says what came of it."""
        try:
            await self._client.set_rate(
                user, price, per="hour", resource=machine, rate_seq=self._next_seq(), min_runway_ns=HOUR_NS
            )
        except BillingError as refusal:
            return f"refused {user} {machine}: {refusal.name}"
        self._running.setdefault(user, set()).add(machine)  # here the hypervisor starts it
        return f"started {user} {machine}"

    async def stop(self, user: str, machine: str) -> str:
        """Stops a machine, then says that it costs nothing any more."""
        # Here the hypervisor stops it: harmless to do twice, since the call comes again where the report fails.
        with contextlib.suppress(StaleRate):  # a newer report of this machine was there first
            await self._client.set_rate(user, "0", per="hour", resource=machine, rate_seq=self._next_seq())
        self._running.get(user, set()).discard(machine)
        return f"stopped {user} {machine}"

    async def cutoff(self, request: web.Request) -> web.Response:
        """The daemon's call: a user has no money left."""
        try:
            call = self._receiver.call(request.raw_path, request.headers, now_s=time.time())
        except NotGenuine:
            return web.Response(status=401)
        if self._receiver.is_due(call):
            try:
                for machine in sorted(self._running.get(call.user_id, ())):
                    print(await self.stop(call.user_id, machine), flush=True)
            except BillingError as error:
                return web.Response(status=503, text=str(error))  # the daemon calls again
            self._receiver.done(call)
        return web.Response(status=204)


async def orders(controller: Controller) -> None:
    """Carries out what stands on standard input, until it ends."""
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        match line.split():
            case ["start", user, machine, price]:
                answer = await controller.start(user, machine, price)
            case ["stop", user, machine]:
                answer = await controller.stop(user, machine)
            case _:
                answer = f"not understood: {line.strip()}"
        print(answer, flush=True)


async def main() -> None:
    parser = argparse.ArgumentParser(description="Reports rates, receives cutoffs.")
    parser.add_argument("--port", type=int, default=8090)
    port = parser.parse_args().port
    address = os.environ.get("BILLING_ADDRESS", "127.0.0.1:3311")
    async with Client(address, token=os.environ.get("BILLING_TOKEN")) as client:
        controller = Controller(client, os.environ["CUTOFF_SECRET"])
        application = web.Application()
        application.router.add_get("/cutoff", controller.cutoff)
        runner = web.AppRunner(application, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port).start()
        print(f"waiting for cutoffs on port {port}", flush=True)
        await orders(controller)
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
