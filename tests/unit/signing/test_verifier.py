"""Signer and verifier: what passes, what is refused, and which keys are trusted."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from support.signing import private_pem, public_pem
from tidewire import errors
from tidewire.signing import KeyUnusable, PublicKey, Refusal, Signer, Verifier, public_keys
from tidewire.v1 import common_pb2
from tidewire.wire.batch import encode_payloads

KEY = private_pem()
SIGNER = Signer("k", KEY, audience="here")
VERIFIER = Verifier({"k": public_pem(KEY)}, audience="here")

WITHOUT = """
import sys
sys.modules["cryptography"] = None
import tidewire, tidewire.signing
from tidewire.errors import TidewireError
for make in (lambda: tidewire.signing.Signer("k", b""), lambda: tidewire.signing.Verifier({})):
    try:
        make()
    except TidewireError as error:
        print(type(error).__name__, "tidewire[certs]" in error.message)
"""


def signed(signer: Signer = SIGNER) -> common_pb2.Batch:
    batch = encode_payloads("a.b", [b"1", b"2"])
    signer.sign(batch)
    return batch


def test_a_signed_batch_passes() -> None:
    """The key id comes out, and it is counted."""
    before = VERIFIER.verified

    assert "k" == VERIFIER.check(signed(), VERIFIER.memory())
    assert before + 1 == VERIFIER.verified


@settings(max_examples=200)
@given(st.data())
def test_no_changed_byte_passes(data: st.DataObject) -> None:
    """Any flipped bit of a serialized batch is refused, or in what is not signed."""
    raw = bytearray(signed().SerializeToString())
    place = data.draw(st.integers(0, len(raw) * 8 - 1))
    raw[place // 8] ^= 1 << place % 8
    try:
        batch = common_pb2.Batch.FromString(bytes(raw))
    except Exception:  # noqa: BLE001 (no protobuf any more)
        return
    before = signed()
    try:
        VERIFIER.check(batch)
    except errors.Unauthenticated:
        return
    for name in ("crc32c", "traceparent", "selected"):
        batch.ClearField(name)
        before.ClearField(name)
    assert (before.subject, before.body, before.count) == (batch.subject, batch.body, batch.count)


def test_unsigned_passes_only_where_that_was_asked_for() -> None:
    """It has nobody's name then; a broken signature never passes."""
    lenient = Verifier({"k": public_pem(KEY)}, audience="here", require=False)
    batch = encode_payloads("a.b", [b"1"])
    broken = signed()
    broken.ClearField("signature")

    assert "" == lenient.check(batch)
    with pytest.raises(errors.SignatureMissing):
        VERIFIER.check(batch)
    with pytest.raises(errors.SignatureInvalid):
        lenient.check(broken)


@pytest.mark.parametrize(
    ("audience", "names", "passes"),
    [
        ("", "", True),
        ("here", "here", True),
        ("here", ("there", "here"), True),
        ("here", "", False),
        ("", "here", False),
        ("here", "there", False),
    ],
)
def test_only_the_recipient_takes_it(
    audience: str, names: str | tuple[str, ...], passes: bool
) -> None:
    """The audience must be one of the receiver's names, and no name is one of its own."""
    verifier = Verifier({"k": public_pem(KEY)}, audience=names)
    batch = signed(Signer("k", KEY, audience=audience))
    if passes:
        assert "k" == verifier.check(batch)
    else:
        with pytest.raises(errors.WrongRecipient):
            verifier.check(batch)


def test_keys_can_be_replaced() -> None:
    """The new one is trusted, the old one is not; a bad set changes nothing."""
    new = private_pem()
    verifier = Verifier({"k": public_pem(KEY)}, audience="here")
    verifier.replace_keys({"k2": public_pem(new)})
    with pytest.raises(KeyUnusable):
        verifier.replace_keys({"k": b"no key"})

    assert "k2" == verifier.check(signed(Signer("k2", new, audience="here")))
    with pytest.raises(errors.UnknownKey):
        verifier.check(signed())


def test_a_batch_must_be_unique_by_itself() -> None:
    """Without a sequence and with a short nonce it could be signed twice the same: refused."""
    batch = signed()
    batch.signature_nonce = b"short"

    with pytest.raises(errors.SignatureInvalid, match="unique"):
        VERIFIER.check(batch)


def test_readers_share_a_memory_by_name_only() -> None:
    """Members of a group refuse what another one has seen; readers of their own do not."""
    batch = signed()
    for memory in (VERIFIER.memory(), VERIFIER.memory(), VERIFIER.memory("group")):
        assert "k" == VERIFIER.check(batch, memory)

    with pytest.raises(errors.Replayed):
        VERIFIER.check(batch, VERIFIER.memory("group"))


def test_only_who_holds_a_key_can_fill_a_memory() -> None:
    """What is refused for its signature, key or recipient is not remembered."""
    memory = VERIFIER.memory()
    other = private_pem()
    for signer in (Signer("k", other), Signer("stranger", other), Signer("k", KEY, audience="x")):
        with pytest.raises(errors.Unauthenticated):
            VERIFIER.check(signed(signer), memory)
    before = len(memory)
    VERIFIER.check(signed(), memory)

    assert (0, 1) == (before, len(memory))


def test_refusals_are_counted_and_told() -> None:
    """By reason and message; a listener that fails is its own problem."""
    told: list[Refusal] = []

    def listener(refusal: Refusal) -> None:
        told.append(refusal)
        raise ValueError("of the application")

    verifier = Verifier({}, on_refused=listener)
    refusal = Refusal(errors.UnknownKey("who"), "a.b", "k", "s", 7, 3)
    verifier.tell(refusal)

    assert ([refusal], {"UNKNOWN_KEY": 3}) == (told, verifier.refused)


def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """However many come, the log gets one in a while, and every one is counted."""
    verifier = Verifier({})
    refusal = Refusal(errors.UnknownKey("who"), "a.b", "k", "", 0, 1)
    for _ in range(1_000):
        verifier.tell(refusal)

    assert 1_000 == verifier.refused["UNKNOWN_KEY"]
    assert 1 <= len(caplog.records) < 100


def test_a_certificate_signs_only_while_it_is_valid() -> None:
    """The key's times are those of its certificate."""
    raw = PublicKey.from_pem(public_pem(KEY)).raw
    now_s = datetime.now(UTC).timestamp()
    valid = Verifier({"k": PublicKey(raw, now_s - 60, now_s + 60)}, audience="here")
    expired = Verifier({"k": PublicKey(raw, now_s - 60, now_s - 30)}, audience="here")

    assert "k" == valid.check(signed())
    with pytest.raises(errors.SignatureInvalid, match="not valid when"):
        expired.check(signed())


def test_private_keys_of_everybody_are_refused(tmp_path: Path) -> None:
    """A file others may read is no secret; the control may be read by its owner only."""
    path = tmp_path / "k.key"
    path.write_bytes(KEY)
    path.chmod(0o600)
    assert SIGNER.public_key == Signer.from_file("k", path).public_key
    path.chmod(0o640)

    with pytest.raises(KeyUnusable, match="chmod 600"):
        Signer.from_file("k", path)


def test_a_folder_of_keys(tmp_path: Path) -> None:
    """Every file is a key under its name; one that is none is refused by name, and so is none."""
    with pytest.raises(KeyUnusable, match="holds no"):
        Verifier.from_folder(tmp_path)
    (tmp_path / "k.pub").write_bytes(public_pem(KEY))
    assert "k" == Verifier.from_folder(tmp_path, audience="here").check(signed())
    assert {"k"} == set(public_keys(tmp_path))  # to be given to `replace_keys` after a change
    (tmp_path / "bad.pub").write_bytes(b"-----BEGIN NONSENSE-----")

    with pytest.raises(KeyUnusable, match=r"bad\.pub: this is not a PEM public key"):
        Verifier.from_folder(tmp_path)


def test_without_cryptography_the_error_says_what_to_install() -> None:
    """A bare install imports; only signing itself needs the package."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=True
    )

    assert ["SigningUnavailable True"] * 2 == done.stdout.splitlines()


def test_times_that_cannot_be_are_refused() -> None:
    """A window must be positive, and so must the memory."""
    with pytest.raises(errors.InvalidArgument):
        Verifier({}, replay_window_s=0.0)
    with pytest.raises(errors.InvalidArgument):
        Verifier({}, remembered_max=0)
