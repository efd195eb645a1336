"""``certs key``, ``pub --sign`` and ``sub --verify`` against a real server."""

from pathlib import Path

import pytest

from support.process import ServerProcess
from tidewire.cli import main

STREAM = ("sub", "--stream", "signed", "--end")


def run(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main([str(word) for word in words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_only_what_is_signed_is_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed messages are written, others are left out and told; without --verify all are."""
    keys = tmp_path / "keys"
    with ServerProcess(tmp_path, ("tcp",)) as process:
        monkeypatch.setenv("TIDEWIRE_URL", process.url("tcp"))
        assert 0 == run(capsys, "stream", "add", "signed", "signed.>")[0]
        assert 0 == run(capsys, "certs", "key", keys, "orders")[0]
        sign = ("--sign", keys / "orders.key", "--audience", "prod")
        assert 0 == run(capsys, "pub", "signed.a", "good", *sign)[0]
        assert 0 == run(capsys, "pub", "signed.a", "bad")[0]
        assert 0 == run(capsys, "pub", "signed.a", "other", "--sign", keys / "orders.key")[0]

        verified = run(capsys, *STREAM, "--verify", keys, "--audience", "prod")
        control = run(capsys, *STREAM)
        as_json = run(capsys, *STREAM, "--json", "--verify", keys, "--audience", "prod")

    assert (0, "good\n") == verified[:2]
    assert "refused messages: 1 SIGNATURE_MISSING, 1 WRONG_RECIPIENT" in verified[2]
    assert (0, "good\nbad\nother\n") == control[:2]
    assert '"signed_by":"orders"' in as_json[1].replace(" ", "")


def test_certificates_sign_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The key id is the SPIFFE id, and is told."""
    assert 0 == run(capsys, "certs", "init", tmp_path)[0]
    code, out, _ = run(capsys, "certs", "key", tmp_path, "orders", "--certified")

    assert 0 == code
    assert "key id spiffe://tidewire.local/client/orders" in out
    assert 2 == run(capsys, "pub", "a", "x", "--key-id", "orders")[0]
    assert 2 == run(capsys, "sub", "a", "--audience", "prod")[0]
    assert 0 != run(capsys, "pub", "a", "x", "--sign", tmp_path / "ca.key")[0]
