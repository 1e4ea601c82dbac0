"""What stands around the supervisor, as far as it does without one."""

from __future__ import annotations

import asyncio
import socket

from billing.service.service import visited


async def test_a_visitor_is_noticed_and_left_to_whoever_accepts_afterwards() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        noticing = asyncio.create_task(visited(listener, 3600))
        await asyncio.sleep(0)
        assert not noticing.done()
        with socket.create_connection(listener.getsockname()[:2]) as visitor:
            await noticing
            accepted, address = listener.accept()
            accepted.close()
            assert address == visitor.getsockname()


async def test_where_nobody_comes_it_is_not_waited_for_for_ever() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        await visited(listener, 0)
