"""HTTP as uvicorn speaks it, with a limit to headers: a client that never ends one is not listened to for ever.

httptools keeps what it was sent until a header is complete, however much that is, and uvicorn's own limit holds for h11
alone. A request that arrives in one piece, as nearly all do, costs no timer.
"""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

#: Bytes taken at most of which nothing is understood yet: of a header, of trailers or of what a chunk has in front.
#: What is read at once (up to 256 KiB) is counted when it was read.
MAX_HEADER_BYTES = 64 * 1024
#: Seconds from a connection, or from the first byte of a request, to the end of the request's header.
HEADER_S = 10.0


class LimitedProtocol(HttpToolsProtocol):
    """One connection. It is closed where a header is longer than MAX_HEADER_BYTES or takes longer than HEADER_S."""

    _timer: asyncio.TimerHandle | None = None
    _unread = 0
    """bytes since anything was understood"""
    _went_on = False
    """whether anything was understood of what was received last"""
    _in_header = False
    _in_body = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._went_on = False
        super().data_received(data)
        if self._went_on:
            self._unread = 0
            if not self._in_header:
                return
        else:
            self._unread += len(data)
        if self.transport.is_closing():
            return
        if self._unread > MAX_HEADER_BYTES:
            msg = "The header of a request is too long."
            self.logger.warning(msg)
            self.send_400_response(msg)
        # line ends ahead of a request are of no request yet, but have ended uvicorn's wait for the next one
        elif self._timer is None and not self._in_body:
            self._start_timer()

    def on_message_begin(self) -> None:
        self._in_header = True
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._went_on, self._in_header, self._in_body = True, False, True
        self._stop_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._went_on = True
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._went_on, self._in_body = True, False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # while the answer was made, nothing may have been read
        if self._timer is not None:
            self._start_timer()

    def _start_timer(self) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(HEADER_S, self._too_late)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_late(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        if self.cycle is not None and not self.cycle.response_complete:
            self._start_timer()  # the next request waits behind one that is being answered
        else:
            self.transport.close()
