"""The error tree: one class for each reason of the registry, and the way through a status."""

import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from tidewire import errors
from tidewire.errors import TidewireError, from_status, reason_name
from tidewire.v1.error_pb2 import Reason


def below(kind: type[TidewireError]) -> list[type[TidewireError]]:
    """Classes of the tree itself; other modules, and tests, may have their own below it."""
    return [sub for sub in kind.__subclasses__() if sub.__module__.startswith("tidewire.errors")]


FAMILIES = below(TidewireError)
CLASSES = [kind for family in FAMILIES for kind in (family, *below(family))]
REASONS = [value for value in Reason.values() if value != Reason.REASON_UNSPECIFIED]


@pytest.mark.parametrize("reason", REASONS, ids=reason_name)
def test_every_reason_has_exactly_one_class(reason: Reason.ValueType) -> None:
    """The registry and the tree say the same."""
    assert 1 == len([kind for kind in CLASSES if kind.reason == reason])


def test_every_status_code_has_exactly_one_family() -> None:
    """All codes but OK; a class never leaves the code of its family."""
    codes = sorted(family.code for family in FAMILIES)

    assert sorted(set(code_pb2.Code.values()) - {code_pb2.OK}) == codes
    for family in FAMILIES:
        assert {family.code} == {family.code, *(kind.code for kind in below(family))}


def test_everything_in_the_tree_is_exported() -> None:
    """`tidewire.errors` is the whole tree."""
    assert set(CLASSES) <= {getattr(errors, name) for name in errors.__all__}


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_errors_survive_the_status(kind: type[TidewireError]) -> None:
    """Class, text, figures, hint and fields come out as they went in."""
    error = kind(
        "what, expected, do",
        metadata={"actual_revision": 7, "subject": "a"},
        retry_after_s=0.25,
        fields={"key": "is wrong"},
    )

    travelled = status_pb2.Status.FromString(error.to_status().SerializeToString())
    got = from_status(travelled)

    assert kind is type(got)
    assert (error.message, error.metadata) == (got.message, got.metadata)
    assert (7, 0.25, {"key": "is wrong"}) == (
        got.figure("actual_revision"),
        got.retry_after_s,
        got.fields,
    )
    assert (kind.code, kind.reason) == (got.code, got.reason)


@given(
    st.sampled_from(CLASSES),
    st.text(),
    st.dictionaries(st.text(min_size=1), st.text()),
    st.dictionaries(st.text(min_size=1), st.text()),
    st.none() | st.integers(0, 10**6).map(lambda ms: ms / 1000),
)
def test_any_text_survives_the_status(
    kind: type[TidewireError],
    message: str,
    metadata: dict[str, str],
    fields: dict[str, str],
    retry_after_s: float | None,
) -> None:
    """Whatever texts and figures an error has, the status carries them."""
    error = kind(message, metadata=metadata, fields=fields, retry_after_s=retry_after_s)

    got = from_status(error.to_status())

    assert (kind, message, metadata, fields) == (type(got), got.message, got.metadata, got.fields)
    assert retry_after_s == (None if got.retry_after_s is None else round(got.retry_after_s, 3))


def status(code: int, reason: str = "", domain: str = errors.DOMAIN) -> status_pb2.Status:
    made = status_pb2.Status(code=code, message="m")
    if reason:
        packed = any_pb2.Any()
        packed.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=domain))
        made.details.append(packed)
    return made


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.__name__)
def test_an_unknown_reason_becomes_the_family(family: type[TidewireError]) -> None:
    """A newer server's reason, another domain's, or none at all: the code decides."""
    for made in (
        status(family.code, "MADE_UP_LATER"),
        status(family.code, "REVISION_MISMATCH", domain="example.com"),
        status(family.code, "UNSPECIFIED"),
        status(family.code),
    ):
        assert family is type(from_status(made))


def test_a_reason_that_does_not_fit_its_code_becomes_the_family() -> None:
    """The code decides what may be retried, so it wins over the reason."""
    assert errors.NotFound is type(from_status(status(code_pb2.NOT_FOUND, "REVISION_MISMATCH")))


def test_a_code_that_does_not_exist_is_unknown() -> None:
    """A status of a broken peer is still an error of the tree."""
    assert errors.Unknown is type(from_status(status(99)))


def test_aborted_and_failed_preconditions_say_what_was_violated() -> None:
    """PreconditionFailure names the reason and the subject."""
    error = errors.RevisionMismatch("m", metadata={"subject": "a", "actual_revision": 7})
    failure = error_details_pb2.PreconditionFailure()

    assert any(detail.Unpack(failure) for detail in error.to_status().details)
    assert [("REVISION_MISMATCH", "a", "m")] == [
        (violation.type, violation.subject, violation.description)
        for violation in failure.violations
    ]


def test_figures_are_numbers_or_nothing() -> None:
    """Text of a peer that is not a number is not one."""
    error = errors.Unknown("m", metadata={"a": "12", "b": "-1", "c": "x"})

    assert [12, None, None, None] == [error.figure(name) for name in "abcd"]
