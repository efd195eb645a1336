"""
Who may call what: the rules of [access] as one question.
"""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

from tidewire_server.ops.config import Rule

ANSWERS_CACHED_MAX: Final = 4_096
HEALTH_SERVICE: Final = "/grpc.health.v1.Health/"


class AccessPolicy:
    """
    Answers whether a principal may call a method.

    Without rules everybody may call everything. With rules, deny beats allow, and what no rule
    allows is denied. Health is always allowed: probes have no identity, and it holds no data.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self._rules = tuple(rules)
        self._answers: dict[tuple[str, str], bool] = {}

    def allows(self, principal: str, method: str) -> bool:
        """
        Say whether this call may go on.

        Args:
            principal: Identity as the wire authenticated it; empty for nobody.
            method: Path of the call, such as ``/tidewire.v1.StateService/Get``.

        """
        if not self._rules:
            return True
        answer = self._answers.get((principal, method))
        if answer is None:
            if len(self._answers) >= ANSWERS_CACHED_MAX:
                self._answers.clear()
            answer = self._answers[principal, method] = self._judge(principal, method)
        return answer

    def _judge(self, principal: str, method: str) -> bool:
        if method.startswith(HEALTH_SERVICE):
            return True
        effects = {rule.effect for rule in self._rules if _applies(rule, principal, method)}
        return "allow" in effects and "deny" not in effects


def _applies(rule: Rule, principal: str, method: str) -> bool:
    full = method.removeprefix("/")
    service, _, name = full.rpartition("/")
    short = f"{service.rpartition('.')[2]}/{name}"
    return any(fnmatchcase(principal, pattern) for pattern in rule.principals) and any(
        fnmatchcase(full, pattern) or fnmatchcase(short, pattern) for pattern in rule.methods
    )
