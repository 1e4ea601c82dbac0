"""A cutoff endpoint as WSGI, ASGI and Flask have it: it takes every call and answers 204."""


def app(environ, start_response):
    start_response("204 No Content", [])
    return [b""]


async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while (await receive())["type"] != "lifespan.shutdown":
            await send({"type": "lifespan.startup.complete"})
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
