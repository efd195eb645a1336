"""Commands against a real server: what they print, and their exit codes."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import tidewire
from support.process import ServerProcess
from tidewire.cli import main

LIMIT_S = 30

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A server for all tests of this module; each test uses names of its own."""
    with ServerProcess(tmp_path_factory.mktemp("server"), ("tcp",)) as process:
        yield process.url("tcp")


@pytest.fixture
def run(url: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a command in this process; returns exit code, standard output, standard error."""
    monkeypatch.setenv("TIDEWIRE_URL", url)

    def call(*words: str, stdin: bytes = b"") -> tuple[int, str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = main(words)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@contextmanager
def background(url: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command beside the test, from its first remark (it is connected) on."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tidewire.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"TIDEWIRE_URL": url},
    )
    try:
        assert process.stderr is not None
        first = process.stderr.readline()
        assert first, process.communicate(timeout=LIMIT_S)
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=LIMIT_S)


def records(text: str | bytes) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_streams_are_made_listed_and_deleted(run: Run) -> None:
    """Their configuration comes back as it was given; what is gone says how to look."""
    code, out, _ = run("stream", "add", "life", "life.>", "--age", "7d", "--bytes", "1m", "--json")
    made = records(out)[0]["config"]
    assert (0, ["life.>"], "604800s", "1048576") == (
        code,
        made["subjects"],
        made["age_max"],
        made["bytes_max"],
    )

    assert "life" in run("stream", "list")[1]
    assert "age kept: 7d" in run("stream", "info", "life")[1]
    assert 0 == run("stream", "delete", "life", "--yes")[0]
    code, _, err = run("stream", "info", "life")
    assert (1, True) == (code, "`tidewire stream list` shows the streams" in err)


def test_deleting_asks_first(run: Run) -> None:
    """No is no, and the end of input too; control: yes deletes."""
    run("stream", "add", "kept", "kept.>")

    assert 130 == run("stream", "delete", "kept", stdin=b"n\n")[0]
    assert 130 == run("stream", "delete", "kept")[0]
    assert 0 == run("stream", "info", "kept")[0]
    assert 0 == run("stream", "delete", "kept", stdin=b"y\n")[0]


def test_what_is_published_is_read(run: Run) -> None:
    """Lines go in, lines come out, in order, with their sequences."""
    run("stream", "add", "tale", "tale.*")

    code, out, err = run("pub", "tale.a", "-", stdin=b"one\ntwo\n\nlast")
    assert (0, "") == (code, out)
    assert "published 4 messages" in err
    code, _, err = run("pub", "tale.b", "--header", "k=v", "five")
    assert (0, True) == (code, "stored in tale as 5 (fsync)" in err)

    assert (0, "one\ntwo\n\nlast\nfive\n") == run("sub", "tale.>", "--end")[:2]
    assert (0, "five\n") == run("sub", "tale.b", "--from", "all", "--end")[:2]
    assert (0, "two\n") == run("sub", "--stream", "tale", "--from", "2", "--count", "1")[:2]
    assert "tale.b\tfive" in run("sub", "tale.*", "--from", "last", "--end", "--with-subject")[1]
    five = records(run("sub", "--stream", "tale", "--from", "5", "--end", "--json")[1])[0]
    assert ("tale", "tale.b", 5, "five") == (
        five["stream"],
        five["subject"],
        five["sequence"],
        five["payload"],
    )
    assert [{"key": "k", "value": "v"}] == five["headers"]


def test_publishing_says_what_became_of_it(run: Run) -> None:
    """A message id is stored once; without a stream it is said; what cannot be is an error."""
    run("stream", "add", "once", "once.>")

    first = records(run("pub", "once.a", "x", "--id", "1", "--json")[1])[0]
    again = records(run("pub", "once.a", "x", "--id", "1", "--json")[1])[0]
    assert (1, False) == (first["sequence"], first["duplicate"])
    assert (1, True) == (again["sequence"], again["duplicate"])
    assert "no stream keeps it" in run("pub", "nowhere.a", "x")[2]
    code, _, err = run("pub", "nowhere.a", "x", "--durability", "fsync")
    assert (1, True) == (code, "`tidewire stream add NAME SUBJECT`" in err)
    code, _, err = run("pub", "once.a", "x", "--expect-last-sequence", "9")
    assert (1, True) == (code, "Traceback" not in err)


def test_publishing_many_is_counted(run: Run) -> None:
    """A repeated message is there as often; control: usage errors publish nothing."""
    run("stream", "add", "many", "many.>")

    done = records(run("pub", "many.a", "x", "--count", "1000", "--json")[1])[0]

    assert 1_000 == done["published"]
    assert 2 == run("pub", "many.a", "-", "--count", "2", stdin=b"x")[0]
    assert 2 == run("pub", "many.a", "-", "--id", "x", stdin=b"x")[0]
    assert 1_000 == len(run("sub", "--stream", "many", "--end")[1].splitlines())


def test_bytes_go_through_untouched(run: Run, url: str) -> None:
    """What is no text comes out of a pipe as it went in, and as Base64 in JSON."""
    run("stream", "add", "raw", "raw")
    data = bytes(range(256))

    assert 0 == run("pub", "raw", "--whole", "-", stdin=data)[0]

    done = subprocess.run(
        [sys.executable, "-m", "tidewire.cli", "--url", url, "sub", "raw", "--end"],
        capture_output=True,
        timeout=LIMIT_S,
        check=True,
    )
    assert data + b"\n" == done.stdout
    assert "payload_base64" in records(run("sub", "raw", "--end", "--json")[1])[0]


def test_consumers_get_each_message_once(run: Run) -> None:
    """What a run has written is settled; the next one goes on behind it."""
    run("stream", "add", "work", "work")
    run("pub", "work", "-", stdin=b"1\n2\n3\n4\n")
    run("consumer", "add", "work", "worker")

    assert "1\n2\n" == run("sub", "--stream", "work", "--consumer", "worker", "--count", "2")[1]
    rest = run("sub", "--stream", "work", "--consumer", "worker", "--count", "2")
    assert (0, "3\n4\n") == rest[:2]
    shown = records(run("consumer", "info", "work", "worker", "--json")[1])[0]
    assert "4" == shown["state"]["ack_floor"]
    assert "worker" in run("consumer", "list", "work")[1]
    assert 0 == run("consumer", "delete", "work", "worker", "--yes")[0]
    assert 1 == run("consumer", "info", "work", "worker")[0]


def test_live_events_reach_a_subscriber(run: Run, url: str) -> None:
    """A subscriber started before gets what is published after, and ends when it has enough."""
    with background(url, "sub", "live.>", "--count", "2") as process:
        run("pub", "live.a", "one")
        run("pub", "live.b", "two")
        out, _ = process.communicate(timeout=LIMIT_S)

    assert (0, b"one\ntwo\n") == (process.returncode, out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_quietly(url: str, number: signal.Signals, code: int) -> None:
    """An interrupted subscriber closes its connection; no traceback."""
    with background(url, "sub", "quiet.>") as process:
        process.send_signal(number)
        _, err = process.communicate(timeout=LIMIT_S)

    assert code == process.returncode
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    "words",
    [
        ["sub"],
        ["sub", "a", "--consumer", "c"],
        ["sub", "a", "--stream", "s", "--consumer", "c"],
        ["sub", "a", "--group", "g", "--from", "all"],
        ["ask", "a", "--all", "--stream"],
        ["answer", "a"],
        ["answer", "a", "--echo", "--reply", "x"],
        ["control", "send", "x"],
        ["control", "send", "x", "--node", "a", "--all"],
        ["control", "attend", "a", "--on", "x"],
    ],
)
def test_contradictions_are_usage_errors(run: Run, words: list[str]) -> None:
    """Options that do not go together are refused before anything is asked of the server."""
    assert 2 == run(*words)[0]


def test_a_subject_without_a_stream_says_so(run: Run) -> None:
    """Reading what no stream keeps names the command that makes one; two streams need a choice."""
    code, _, err = run("sub", "lonely.>", "--end")
    assert (1, True) == (code, "tidewire stream add NAME" in err)

    run("stream", "add", "one", "both.one")
    run("stream", "add", "two", "both.two")
    code, _, err = run("sub", "both.*", "--end")
    assert (1, True) == (code, "choose by --stream: one, two" in err)


def test_queries_are_answered(run: Run, url: str) -> None:
    """By a text, by themselves and by a program, whose failure is an error of the asker."""
    program = ["--", sys.executable, "-c", "import sys; print(sys.stdin.read().upper(), end='')"]
    failing = ["--", sys.executable, "-c", "import sys; sys.exit('broken')"]
    with (
        background(url, "answer", "q.text", "--reply", "pong"),
        background(url, "answer", "q.echo", "--echo"),
        background(url, "answer", "q.upper", *program),
        background(url, "answer", "q.fails", *failing),
    ):
        assert (0, "pong\n") == run("ask", "q.text")[:2]
        assert (0, "same\n") == run("ask", "q.echo", "same")[:2]
        assert (0, "LOUD\n") == run("ask", "q.upper", "-", stdin=b"loud")[:2]
        assert "pong" == records(run("ask", "q.text", "--json")[1])[0]["payload"]
        assert (0, "pong\n") == run("ask", "q.text", "--all")[:2]
        code, _, err = run("ask", "q.fails")
        assert (1, True) == (code, "ended with exit code 1: broken" in err)
    code, _, err = run("ask", "q.nobody")
    assert (1, True) == (code, "`tidewire answer SUBJECT` starts a responder" in err)


def test_state_is_kept(run: Run) -> None:
    """Put, get, compare, list, history, delete; a wrong revision changes nothing."""
    assert (0, True) == (code_of(run("state", "put", "s/a", "1")), True)
    revision = records(run("state", "get", "s/a", "--json")[1])[0]["revision"]
    assert (0, "1\n") == run("state", "get", "s/a")[:2]
    code, _, err = run("state", "put", "s/a", "2", "--expect", "0")
    assert (1, True) == (code, "Read the key again" in err)
    assert 0 == run("state", "put", "s/a", "-", "--expect", str(revision), stdin=b"\xff")[0]
    run("state", "put", "s/b", "x", "--ttl", "1h")

    assert "s/a\ns/b\n" == run("state", "list", "s/")[1]
    assert "s/b\tx" in run("state", "list", "s/b", "--values")[1]
    entry = records(run("state", "list", "s/", "--values", "--json")[1])[0]
    assert ("s/a", "/w==") == (entry["key"], entry["value_base64"])
    history = records(run("state", "history", "s/a", "--json")[1])
    assert ["put", "put"] == [event["kind"] for event in history]
    assert "1\n" == run("state", "get", "s/a", "--revision", str(revision))[1]
    assert 0 == run("state", "delete", "s/a")[0]
    assert "there was no key" in run("state", "delete", "s/a")[2]
    code, _, err = run("state", "get", "s/a")
    assert (1, True) == (code, "`tidewire state list`" in err)


def code_of(outcome: tuple[int, str, str]) -> int:
    return outcome[0]


def test_changes_of_state_are_watched(run: Run, url: str) -> None:
    """What is there comes first, then each change as it happens."""
    run("state", "put", "w/a", "1")
    with background(url, "state", "watch", "w/", "--count", "3", "--json") as process:
        run("state", "put", "w/b", "2")
        run("state", "delete", "w/a")
        out, _ = process.communicate(timeout=LIMIT_S)

    events = [event for event in records(out) if "key" in event]
    assert [("snapshot", "w/a"), ("put", "w/b"), ("delete", "w/a")] == [
        (event["kind"], event["key"]) for event in events
    ]


def test_nodes_obey(run: Run, url: str) -> None:
    """A program runs for a command and its output is the result; an unknown verb fails."""
    program = f"greet={sys.executable} -c 'print(input().title(), end=\"\")'"
    with background(url, "control", "attend", "node-1", "--on", program):
        code, out, _ = run("control", "send", "greet", "--node", "node-1", "anna")
        assert (0, "node-1\tsucceeded\tAnna\n") == (code, out)
        code, out, _ = run("control", "send", "dance", "--node", "node-1", "--json")
        failed = records(out)[0]
        assert (1, "failed") == (code, failed["progress"])
        assert "does not know 'dance'" in failed["error"]


def test_the_server_obeys_too(run: Run) -> None:
    """The server's own node changes its log level; a wrong argument is said."""
    node = records(run("info", "--json")[1])[0]["node_id"]
    words = ["control", "send", "set_log_level", "--node", node]

    assert 0 == run(*words, '{"level": "debug"}')[0]
    code, out, _ = run(*words, '{"level": "loud"}')
    assert (1, True) == (code, "loud" in out)


def test_members_are_listed(run: Run) -> None:
    """An empty cluster has its columns only, and no lines of JSON."""
    assert run("members")[1].startswith("NODE")
    assert (0, "") == run("members", "--json")[:2]


async def test_a_member_is_shown(url: str) -> None:
    """A member that beats is alive, with its groups and its figures."""
    words = ["members", "--group", "pumps", "--json", "--url", url]
    async with tidewire.connect(url) as client, client.members.join("pump-1", groups=["pumps"]):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "tidewire.cli", *words, stdout=asyncio.subprocess.PIPE
        )
        out, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)

    (member,) = records(out)
    assert ("pump-1", "MEMBER_STATUS_ALIVE") == (member["node_id"], member["status"])


def test_checkpoints_are_listed(run: Run) -> None:
    """None are there, which is said and is no crash."""
    assert run("checkpoint", "list")[1].startswith("OPERATOR")
    code, _, err = run("checkpoint", "show", "nobody")
    assert (1, True) == (code, "Traceback" not in err)


def test_the_server_is_described(run: Run) -> None:
    """Version, limits and listeners for people and for programs."""
    text = run("info")[1]
    plain = records(run("info", "--json")[1])[0]

    assert "durability: fsync by default" in text
    assert "you are: not authenticated" in text
    assert plain["listeners"][0]["url"].startswith("tcp://127.0.0.1:")


SERVER_ONLY = [
    "aiofastnet",
    "apsw",
    "cryptography",
    "grpc_health",
    "grpc_reflection",
    "grpc_status",
    "h11",
    "msgspec",
    "prometheus_client",
    "structlog",
    "tidewire_server",
    "uvloop",
]


def test_a_bare_install_is_enough_for_clients(url: str) -> None:
    """Without any package of the server's extra: health, publishing, state and info work."""
    program = (
        f"import sys\nfor name in {SERVER_ONLY!r}: sys.modules[name] = None\n"
        "from tidewire.cli import main\n"
        "words = (['health'], ['info'], ['pub', 'bare', 'x'], ['state', 'put', 'bare', 'x'])\n"
        "sys.exit(max(main([*some, '--url', sys.argv[1]]) for some in words))\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, url], capture_output=True, timeout=LIMIT_S, check=False
    )

    assert (0, b"SERVING") == (done.returncode, done.stdout.split()[0]), done.stderr


@pytest.mark.parametrize("wire", ["tls", "grpcs"])
def test_certificates_of_init_work_end_to_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wire: str
) -> None:
    """What `certs init` makes starts a server and lets a client in, who is known by its id."""
    folder = tmp_path / "certs"
    assert 0 == main(["certs", "init", str(folder), "--client", "laptop", "-q"])
    flags = ["--tls-ca", f"{folder}/ca.pem", "--tls-certificate", f"{folder}/server.pem"]
    flags += ["--tls-key", f"{folder}/server.key"]
    with ServerProcess(tmp_path, (wire,), flags=flags) as process:
        url = process.url(wire)
        own = ["--cert", f"{folder}/laptop.pem", "--key", f"{folder}/laptop.key"]
        capsys.readouterr()
        code = main(["info", "--url", url, "--ca", f"{folder}/ca.pem", *own, "--json"])
        out = capsys.readouterr().out
        refused = main(["info", "--url", url, "--ca", f"{folder}/ca.pem", "--timeout", "3"])
        err = capsys.readouterr().err

    assert 0 == code
    assert "spiffe://tidewire.local/client/laptop" == records(out)[0]["principal"]
    assert (1, False) == (refused, "Traceback" in err)


def test_no_server_is_said_with_what_to_do(run: Run) -> None:
    """Every kind of command, when nobody listens there."""
    for words in (["info"], ["state", "get", "a"], ["pub", "a", "b"], ["sub", "a"]):
        code, out, err = run("--url", "tcp://127.0.0.1:1", "--timeout", "1", *words)
        assert (1, "") == (code, out)
        assert "`tidewire serve` starts one" in err
        assert "Traceback" not in err


def test_a_state_of_a_checkpoint_is_written(run: Run, url: str, tmp_path: Path) -> None:
    """A checkpoint made by a client is shown, and its state comes out whole and verified."""
    state = os.urandom(3_000_000)

    async def commit() -> None:
        async with tidewire.connect(url) as client:
            operator = client.checkpoints.operator("daily")
            await operator.acquire()
            await operator.commit(state=state, note="first")

    asyncio.run(commit())
    file = tmp_path / "state"

    assert "daily" in run("checkpoint", "list")[1]
    shown = records(run("checkpoint", "show", "daily", "--json")[1])[0]
    assert (1, len(state), "first") == (shown["revision"], shown["state_bytes"], shown["note"])
    assert 0 == run("checkpoint", "show", "daily", "--output", str(file))[0]
    assert state == file.read_bytes()
