"""Connections: who opens one has to send a whole request, and take the answer, within a time."""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


def patient_for(seconds: float) -> type[H11Protocol]:
    """Makes uvicorn's protocol of HTTP/1.1 that closes connections after so many seconds of waiting for the client.

    It waits for a whole request, also behind one that was refused before its body was read, and until the client's side
    has taken an answer. uvicorn itself waits for ever, and would have no connections left where somebody opens many and
    sends or reads a byte now and then.

    A request that comes before the one in front of it is answered is dropped, and the connection ends with that answer:
    who pipelines asks again elsewhere. uvicorn would read no further until then, and not see that the client has gone.
    """

    class Protocol(H11Protocol):
        _closes: asyncio.TimerHandle | None = None
        _aborts: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            transport.set_write_buffer_limits(0)  # every byte that the client does not take pauses
            self._closes = self.loop.call_later(seconds, transport.close)

        def data_received(self, data: bytes) -> None:
            if not self._is_answering():
                super().data_received(data)
                data, _ = self.conn.trailing_data
            if data and self._is_answering():
                self.cycle.keep_alive = False
                self.flow.resume_reading()
            is_open = self.conn.their_state in (h11.IDLE, h11.SEND_BODY)
            if self._closes is not None and not is_open:
                self._closes.cancel()
                self._closes = None
            elif self._closes is None and is_open:  # a further request
                self._closes = self.loop.call_later(seconds, self.transport.close)

        def _is_answering(self) -> bool:
            cycle = self.cycle
            return cycle is not None and not cycle.more_body and not cycle.response_complete

        def pause_writing(self) -> None:
            super().pause_writing()
            self._aborts = self.loop.call_later(seconds, self.transport.abort)

        def resume_writing(self) -> None:
            super().resume_writing()
            if self._aborts is not None:
                self._aborts.cancel()

        def connection_lost(self, exc: Exception | None) -> None:
            for timer in (self._closes, self._aborts):
                if timer is not None:
                    timer.cancel()
            super().connection_lost(exc)

    return Protocol
