"""Headers without an end are cut off by bytes and by time; requests as clients send them are not."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from ml.serving import protocol
from ml.serving.protocol import LimitedProtocol
from tests.servers import free_port
from tests.serving.conftest import Api

#: In which a header must be complete in the tests, and what is surely longer and shorter.
HEADER_S, LONGER, SHORTER = 0.6, 3.0, 0.2
REQUEST = b"GET /quick HTTP/1.1\r\nHost: x\r\n\r\n"


async def echo(scope: Any, receive: Any, send: Any) -> None:
    """Path and length of the body; ``/slow`` takes longer than a header may."""
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        size, more = size + len(message["body"]), message["more_body"]
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * HEADER_S)
    body = f"{scope['path']} {size};".encode()
    await send({
        "type": "http.response.start", "status": 200, "headers": [(b"content-length", str(len(body)).encode())],
    })  # fmt: skip
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A server of the protocol, in which a header must not take long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(protocol, "HEADER_S", HEADER_S)
        number = free_port()
        server = uvicorn.Server(
            uvicorn.Config(echo, port=number, http=LimitedProtocol, lifespan="off", log_config=None, access_log=False)
        )
        thread = threading.Thread(target=server.run)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield number
        server.should_exit = True
        thread.join()


def connected(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LONGER)


def answer(client: socket.socket, end: bytes = b";") -> bytes:
    """What was received until it ends so, or until the connection was closed."""
    got = b""
    while not got.endswith(end) and (part := client.recv(65_536)):
        got += part
    return got


def is_closed(client: socket.socket) -> bool:
    """Whether the other side closes the connection within LONGER."""
    try:
        while client.recv(65_536):
            pass
    except ConnectionError:
        return True
    except TimeoutError:
        return False
    return True


def taken(port: int, first: bytes, piece: bytes) -> int:
    """Bytes that a server takes before it hangs up, 3 MB at most."""
    with connected(port) as client:
        sent = client.send(first)
        try:
            while sent < 3_000_000:
                sent += client.send(piece)
                time.sleep(0.002)  # what lies in the buffers between was not taken
        except (ConnectionError, TimeoutError):
            pass
        return sent


ENDLESS = {
    "one header": (b"GET / HTTP/1.1\r\na: ", b"b" * 8_192),
    "many headers": (b"GET / HTTP/1.1\r\n", b"a: b\r\n" * 1_000),
    "the path": (b"GET /", b"b" * 8_192),
    "trailers": (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n" * 1_000),
    "the front of a chunk": (b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n5;", b"b" * 8_192),
    "line ends": (b"", b"\r\n" * 4_096),
    "after a request": (REQUEST + b"GET / HTTP/1.1\r\na: ", b"b" * 8_192),
}


@pytest.mark.parametrize("case", ENDLESS)
def test_what_has_no_end_is_cut_off(port: int, case: str) -> None:
    assert taken(port, *ENDLESS[case]) < 1_000_000


def test_the_service_itself_cuts_off_a_header_without_end(api: Api) -> None:
    assert taken(int(api.url.rpartition(":")[2]), *ENDLESS["one header"]) < 1_000_000
    assert api.client.get("/health").status_code == 200


def test_too_long_a_header_is_answered(port: int) -> None:
    with connected(port) as client:
        client.sendall(b"GET / HTTP/1.1\r\na: " + b"b" * 70_000)
        assert answer(client).startswith(b"HTTP/1.1 400 ")


HALVES = {
    "nothing": b"",
    "half a line": b"GET / HT",
    "half a header": b"GET / HTTP/1.1\r\nHost: x\r\na: ",
    "a line end": b"\r\n",
    "half of the second request": REQUEST + b"GET / HTTP/1.1\r\n",
    "a line end after a request": REQUEST + b"\r\n",
}


@pytest.mark.parametrize("case", HALVES)
def test_half_a_header_is_not_waited_for_for_ever(port: int, case: str) -> None:
    with connected(port) as client:
        client.sendall(HALVES[case])
        if HALVES[case].startswith(REQUEST):
            answer(client)
            client.sendall(HALVES[case][len(REQUEST) :])
        assert is_closed(client)


def test_bytes_that_drip_do_not_buy_time(port: int) -> None:
    started = time.monotonic()
    with connected(port) as client, pytest.raises(ConnectionError):
        while time.monotonic() < started + LONGER:
            client.send(b"G")
            time.sleep(0.05)


def test_requests_one_after_the_other_on_one_connection(port: int) -> None:
    with connected(port) as client:
        for _ in range(2):
            client.sendall(REQUEST)
            assert answer(client).endswith(b"/quick 0;")
            time.sleep(2 * HEADER_S)  # an idle connection between requests is no header that does not come


def test_a_header_in_pieces_is_understood(port: int) -> None:
    with connected(port) as client:
        for i in range(0, len(REQUEST), 8):
            client.sendall(REQUEST[i : i + 8])
            time.sleep(SHORTER / 10)
        assert answer(client).endswith(b"/quick 0;")
        time.sleep(2 * HEADER_S)
        client.sendall(REQUEST)
        assert answer(client).endswith(b"/quick 0;")


def test_requests_sent_at_once_are_answered_in_order(port: int) -> None:
    slow = REQUEST.replace(b"quick", b"slow")
    with connected(port) as client:
        client.sendall(slow + REQUEST + REQUEST[:10])  # the half waits behind the slow one
        got = answer(client, b"/quick 0;")
        assert got.index(b"/slow 0;") < got.index(b"/quick 0;")
        client.sendall(REQUEST[10:])
        assert answer(client).endswith(b"/quick 0;")


@pytest.mark.parametrize("chunked", [False, True])
def test_large_bodies_pass(port: int, chunked: bool) -> None:
    piece = b"x" * 50_000
    with connected(port) as client:
        if chunked:
            client.sendall(b"POST /quick HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(100):
                client.sendall(b"%x\r\n%s\r\n" % (len(piece), piece))
            client.sendall(b"0\r\na: b\r\n\r\n")
        else:
            client.sendall(b"POST /quick HTTP/1.1\r\ncontent-length: 5000000\r\n\r\n")
            for _ in range(100):
                client.sendall(piece)
        assert answer(client).endswith(b"/quick 5000000;")


def test_the_service_takes_a_large_body(api: Api) -> None:
    body = json.dumps({"rows": "x" * 5_000_000})
    got = api.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert got.status_code == 422
