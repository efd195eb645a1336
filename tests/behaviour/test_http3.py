"""An HTTP/3 client against a whole server: it publishes, and watches state as it changes."""

import json
from pathlib import Path

import tidewire
from support.http3 import http3_client
from support.server import running
from tidewire.v1 import event_pb2, state_pb2
from tidewire.wire.batch import encode_payloads

STREAM = "application/connect+proto"
UNARY = "application/proto"


async def test_post_and_stream(tmp_path: Path) -> None:
    """A POST publishes what a client of ours reads; a stream shows what a client of ours puts."""
    async with running(tmp_path, ("quic",)) as server:
        tls = server.certificates.client("browser")
        async with (
            http3_client(server.url("quic"), tls) as http,
            tidewire.connect(server.url("quic"), tls=server.tls("quic")) as client,
            client.events.subscribe("web.>") as messages,
        ):
            batch = encode_payloads("web.greeting", [b"from a page"])
            request = event_pb2.PublishRequest(batch=batch)
            answer = await http.post(
                "/tidewire.v1.EventService/Publish", UNARY, request.SerializeToString()
            )
            assert (200, UNARY) == (answer.status, answer.headers["content-type"])
            event_pb2.PublishResponse.FromString(answer.body)
            assert b"from a page" == (await anext(messages)).payload

            watch = state_pb2.WatchRequest(prefix="web/").SerializeToString()
            stream, shown = http.begin("/tidewire.v1.StateService/Watch", STREAM)
            http.send(stream, len(watch).to_bytes(5, "big") + watch, last=True)
            await shown.envelope()  # opened
            await client.state.put("web/a", b"1")
            while b"web/a" not in (seen := await shown.envelope())[1]:
                assert 0 == seen[0]

            broken = await http.post("/tidewire.v1.StateService/Get", UNARY, b"\xff")
            assert 400 == broken.status
            assert "invalid_argument" == json.loads(broken.body)["code"]
