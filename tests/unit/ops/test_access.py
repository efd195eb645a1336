"""Who may call what."""

import pytest

from tidewire_server.ops.access import ANSWERS_CACHED_MAX, AccessPolicy
from tidewire_server.ops.config import Rule

READ = "/tidewire.v1.StateService/Get"
WRITE = "/tidewire.v1.StateService/Put"
APP = "spiffe://example.org/app"


def test_without_rules_everything_is_allowed() -> None:
    """The default keeps nobody out."""
    assert AccessPolicy([]).allows("", WRITE)


@pytest.mark.parametrize("pattern", ["StateService/Get", "tidewire.v1.StateService/Get", "*/Get"])
def test_with_rules_the_rest_is_denied(pattern: str) -> None:
    """What no rule allows is denied, to others and for other methods."""
    policy = AccessPolicy([Rule(principals=["spiffe://example.org/*"], methods=[pattern])])

    assert policy.allows(APP, READ)
    assert not policy.allows(APP, WRITE)
    assert not policy.allows("spiffe://example.com/app", READ)
    assert not policy.allows("", READ)


def test_deny_beats_allow() -> None:
    """The order of rules does not matter."""
    rules = [
        Rule(principals=["*"], methods=["StateService/Put"], effect="deny"),
        Rule(principals=["*"], methods=["*"]),
    ]

    for order in (rules, rules[::-1]):
        assert not AccessPolicy(order).allows(APP, WRITE)
        assert AccessPolicy(order).allows(APP, READ)


def test_the_empty_principal_is_who_did_not_authenticate() -> None:
    """A rule can speak of nobody alone."""
    rules = [
        Rule(principals=["*"], methods=["*"]),
        Rule(principals=[""], methods=["*"], effect="deny"),
    ]

    assert not AccessPolicy(rules).allows("", READ)
    assert AccessPolicy(rules).allows(APP, READ)


def test_health_is_always_allowed() -> None:
    """Probes have no identity; control: nothing else of that package is."""
    policy = AccessPolicy([Rule(principals=["*"], methods=["*"], effect="deny")])

    assert policy.allows("", "/grpc.health.v1.Health/Check")
    assert not policy.allows("", "/grpc.health.v1.HealthX/Check")


def test_kept_answers_are_bounded() -> None:
    """Principals come from outside: remembering them must not grow without end."""
    policy = AccessPolicy([Rule(principals=["a*"], methods=["*"])])

    answers = [policy.allows(f"a{n}", READ) for n in range(ANSWERS_CACHED_MAX + 10)]

    assert all(answers)
    assert len(policy._answers) <= ANSWERS_CACHED_MAX
