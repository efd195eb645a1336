"""A small fuzz campaign in every run, and its control; `fuzz_wire` is the long one."""

from typing import Final

import pytest

from robustness.fuzz_targets import TARGETS, Target
from robustness.fuzz_wire import Corpus, caught, fuzz

INPUTS: Final = 1_500
CONTROL_INPUTS_MAX: Final = 200_000
SEED: Final = 20


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_nothing_but_refusals(target: Target) -> None:
    """Mutations of good samples are taken or refused; nothing else is raised, bounds hold."""
    outcome = fuzz(target, INPUTS, SEED)

    assert INPUTS == outcome.inputs
    assert outcome.taken > INPUTS // 100  # it is not all refused at the first byte
    assert outcome.refused.total() > INPUTS // 100


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_a_missing_check_is_found(target: Target) -> None:
    """The control: without one of its checks the target fails, and the campaign sees it."""
    assert caught(target, CONTROL_INPUTS_MAX, SEED)


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_corpus_is_honest(target: Target) -> None:
    """Most samples that a target should take it does take: mutations begin from good ones."""
    corpus = Corpus.of(target)

    assert len(corpus.honest) >= 4
