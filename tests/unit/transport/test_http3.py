"""HTTP/3 clients at a quic:// listener: unary calls and streams by the Connect protocol."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2

from support.authority import Authority
from support.echo.v1 import echo_pb2
from support.echoing import Echoing, echoing
from support.http3 import Http3Client, http3_client
from tidewire.errors import InvalidArgument
from tidewire.transport import TransportOptions
from tidewire.transport.quic import connect_protocol as connect
from tidewire.transport.quic.connect_protocol import STREAM, UNARY, NotACall, envelope
from tidewire.wire.limits import KIB, WireLimits

LIMIT_S = 10.0
SAY = "/support.echo.v1.EchoService/Say"
REPEAT = "/support.echo.v1.EchoService/Repeat"


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Echoing]:
    """Echo over QUIC."""
    limits = WireLimits(message_bytes_max=300 * KIB)
    async with (
        asyncio.timeout(3 * LIMIT_S),
        echoing("quic", tmp_path, server_options=TransportOptions(limits=limits)) as it,
    ):
        yield it


@pytest.fixture
async def http(served: Echoing) -> AsyncIterator[Http3Client]:
    """An HTTP/3 client with a certificate."""
    assert served.tls is not None
    async with http3_client(served.url, served.tls) as made:
        yield made


def said(**fields: object) -> bytes:
    """Return a request of Say."""
    return echo_pb2.SayRequest(**fields).SerializeToString()  # type: ignore[arg-type]


async def test_unary_call(http: Http3Client) -> None:
    """The body is the request, the body of the answer is the response."""
    answer = await http.post(SAY, UNARY, said(text="hello", body=bytes(200 * KIB)))

    assert (200, UNARY) == (answer.status, answer.headers["content-type"])
    response = echo_pb2.SayResponse.FromString(answer.body)
    assert ("hello", 200 * KIB) == (response.text, len(response.body))


async def test_identity_and_metadata(http: Http3Client) -> None:
    """The handler sees the client's certificate, headers as metadata, and may answer with some."""
    who = echo_pb2.SayResponse.FromString((await http.post(SAY, UNARY, said(fault="who"))).body)
    raw = base64.b64encode(b"\x00\xff").decode().rstrip("=")
    stream, answer = http.begin(SAY, UNARY, color="blue", raw_bin=raw, authorization="Bearer x")
    http.send(stream, said(fault="metadata"), last=True)
    await answer.done.wait()
    token = await http.post(SAY, UNARY, said(fault="token"), authorization="Bearer x")

    assert "spiffe://test/alice" in who.text
    response = echo_pb2.SayResponse.FromString(answer.body)
    assert ("blue", b"\x00\xff") == (response.text, response.body)
    assert ("1", "AP8") == (answer.headers["first"], answer.headers["first-bin"])
    assert ("2", "/wA") == (answer.headers["trailer-last"], answer.headers["trailer-last-bin"])
    assert "Bearer x" == echo_pb2.SayResponse.FromString(token.body).text


async def test_errors(http: Http3Client) -> None:
    """Code, message and details are those of every wire, as JSON; the HTTP status fits."""
    answer = await http.post(SAY, UNARY, said(fault="details"))
    error = json.loads(answer.body)
    missing = await http.post("/support.echo.v1.EchoService/None", UNARY, b"")
    late = await http.post(SAY, UNARY, said(fault="sleep"), connect_timeout_ms="50")
    broken = await http.post(SAY, UNARY, b"\xff\xff")

    assert (409, "application/json") == (answer.status, answer.headers["content-type"])
    assert ("aborted", "too loud") == (error["code"], error["message"])
    (detail,) = error["details"]
    assert "google.rpc.ErrorInfo" == detail["type"]
    info = any_pb2.Any(value=base64.b64decode(detail["value"] + "=="))
    assert "TOO_LOUD" == error_details_pb2.ErrorInfo.FromString(info.value).reason
    assert [501, 504, 400] == [missing.status, late.status, broken.status]


async def test_server_stream(http: Http3Client, served: Echoing) -> None:
    """Messages come in envelopes as they are made; the last envelope has the end."""
    request = echo_pb2.RepeatRequest(text="r", count=20, body_bytes=20 * KIB)
    stream, answer = http.begin(REPEAT, STREAM)
    http.send(stream, envelope(request.SerializeToString()), last=True)
    got = []
    while (message := await answer.envelope())[0] == 0:
        got.append(echo_pb2.RepeatResponse.FromString(message[1]).index)
    aborted = await http.post(
        REPEAT, STREAM, envelope(echo_pb2.RepeatRequest(text="abort", count=1).SerializeToString())
    )
    await aborted.envelope()
    flags, end = await aborted.envelope()

    assert list(range(20)) == got
    assert (2, {}) == (message[0], json.loads(message[1]))
    assert (200, STREAM) == (answer.status, answer.headers["content-type"])
    assert (2, "data_loss") == (flags, json.loads(end)["error"]["code"])
    assert {} == dict(served.server.counters.errors)


async def test_a_slow_reader_stops_its_handler_only(served: Echoing) -> None:
    """A client that takes nothing of one answer costs bounded memory; its other calls go on."""
    assert served.tls is not None
    async with http3_client(served.url, served.tls, stream_window_bytes=50 * KIB) as http:
        quic: Any = http._quic
        grant, held = quic._write_stream_limits, http._quic.get_next_available_stream_id()

        def grudging(builder: Any, space: Any, stream: Any) -> None:
            if stream.stream_id != held:
                grant(builder=builder, space=space, stream=stream)

        quic._write_stream_limits = grudging
        request = echo_pb2.RepeatRequest(text="r", count=1_000, body_bytes=10 * KIB)
        stream, answer = http.begin(REPEAT, STREAM)
        http.send(stream, envelope(request.SerializeToString()), last=True)
        await answer.more(40 * KIB)
        for _ in range(20):
            assert 200 == (await http.post(SAY, UNARY, said(text="on"))).status
        written = served.service.written
        quic.reset_stream(stream, 0x10C)
        quic.stop_stream(stream, 0x10C)
        http.transmit()
        await served.service.cancelled.wait()

    assert held == stream
    assert 4 <= written < 60


async def test_what_is_no_call(http: Http3Client) -> None:
    """Other methods and content types; a stream asked for as if it were unary."""
    _, got = http.begin(SAY, UNARY, method="GET")
    await got.done.wait()
    html = await http.post(SAY, "text/html", b"")
    packed = await http.post(SAY, UNARY, b"", content_encoding="gzip")
    request = echo_pb2.RepeatRequest(text="r", count=3).SerializeToString()
    stream = await http.post(REPEAT, UNARY, request)
    two = await http.post(REPEAT, STREAM, envelope(request) * 2)
    flags, end = await two.envelope()

    assert [405, 415, 415, 415] == [one.status for one in (got, html, packed, stream)]
    assert (2, "invalid_argument") == (flags, json.loads(end)["error"]["code"])
    assert 200 == (await http.post(SAY, UNARY, said(text="on"))).status


async def test_limits(http: Http3Client) -> None:
    """A message that is too large, and a head that is, end their request and nothing else."""
    answer = await http.post(SAY, UNARY, said(body=bytes(301 * KIB)))
    stream = http._quic.get_next_available_stream_id()
    http._quic.send_stream_data(stream, b"\x01\x80\x0f\xff\xff" + bytes(100 * KIB))
    http.transmit()

    assert 429 == answer.status
    assert "resource_exhausted" == json.loads(answer.body)["code"]
    assert 200 == (await http.post(SAY, UNARY, said(text="on"))).status


async def test_who_gets_in(served: Echoing, tmp_path: Path) -> None:
    """A browser without a certificate is refused as any client is."""
    assert served.tls is not None
    stranger = Authority(tmp_path / "..", "rogue").issue("rogue")
    for certificate in (None, stranger):
        tls = type(served.tls)(
            ca=served.tls.ca,
            certificate=certificate.certificate if certificate else None,
            key=certificate.key if certificate else None,
        )
        async with http3_client(served.url, tls) as client:
            stream, answer = client.begin(SAY, UNARY)
            client.send(stream, said(text="let me in"), last=True)
            await client.wait_closed()
            assert not answer.headers
    assert [] == served.service.order


@pytest.mark.parametrize(
    ("headers", "wrong"),
    [
        ([(b":method", b"PUT"), (b"content-type", UNARY.encode())], NotACall),
        ([(b":method", b"POST"), (b"content-type", b"application/json")], NotACall),
        (
            [(b":method", b"POST"), (b"content-type", UNARY.encode()), (b"x-bin", b"!")],
            InvalidArgument,
        ),
        (
            [
                (b":method", b"POST"),
                (b"content-type", UNARY.encode()),
                (b"connect-timeout-ms", b"soon"),
            ],
            InvalidArgument,
        ),
    ],
)
def test_heads_that_cannot_be(headers: list[tuple[bytes, bytes]], wrong: type) -> None:
    """Each is refused by its own reason."""
    with pytest.raises(wrong):
        connect.read_head(headers)


def test_every_code_has_a_name_and_a_status() -> None:
    """By number, as gRPC has them."""
    assert 17 == len(connect.CODES)
    assert {200, 400, 401, 403, 404, 409, 429, 499, 500, 501, 503, 504} == {
        connect.http_status(code) for code in range(17)
    }
