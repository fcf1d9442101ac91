"""A client that leaves ends what it asked for: its place in the batch is free."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

App = Callable[..., Awaitable[Any]]


class LeavingClients:
    """An ASGI app around another, which cancels a request whose client closes the connection.

    Args:
        app: The app.
    """

    def __init__(self, app: App):
        self.app = app

    async def __call__(self, scope: dict[str, Any], receive: App, send: App) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        left = asyncio.Event()
        messages: asyncio.Queue = asyncio.Queue()

        async def listen() -> None:
            while not left.is_set():
                message = await receive()
                messages.put_nowait(message)
                if message["type"] == "http.disconnect":
                    left.set()

        answering = asyncio.ensure_future(self.app(scope, messages.get, send))
        listening = asyncio.ensure_future(listen())
        await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
        listening.cancel()
        if left.is_set():
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering
        else:
            await answering
