"""Connections: who opens one has to send the head of a request within a time."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """Makes uvicorn's protocol of HTTP/1.1 that closes connections which send no whole head within so many seconds.

    uvicorn itself waits for ever, and would have no connections left where somebody opens many and sends a byte now and
    then. The time of a body is limited where it is read.
    """

    class Protocol(H11Protocol):
        _closes: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._closes = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            is_head_open = self.conn.their_state is h11.IDLE
            if self._closes is not None and not is_head_open:
                self._closes.cancel()
                self._closes = None
            elif self._closes is None and is_head_open:  # of a further request
                self._closes = self.loop.call_later(seconds, self.transport.close)

        def connection_lost(self, exc: Exception | None) -> None:
            if self._closes is not None:
                self._closes.cancel()
            super().connection_lost(exc)

    return Protocol
