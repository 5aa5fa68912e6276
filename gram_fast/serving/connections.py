"""Connections: who opens one has to send a whole request within a time."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """Makes uvicorn's protocol of HTTP/1.1 that closes connections which send no whole request within so many seconds.

    uvicorn itself waits for ever, and would have no connections left where somebody opens many and sends a byte now and
    then; also behind a request that was refused before its body was read.
    """

    class Protocol(H11Protocol):
        _closes: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._closes = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_open = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            if self._closes is not None and not is_open:
                self._closes.cancel()
                self._closes = None
            elif self._closes is None and is_open:  # a further request
                self._closes = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._closes is not None:
                self._closes.cancel()
            super().connection_lost(exc)

    return Protocol
