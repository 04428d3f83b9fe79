"""Questions of traps to control: what becomes of those whose workload goes."""

from __future__ import annotations

import errno
from collections import Counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import pytest

from slim.broker.endpoints import Endpoint
from slim.broker.flows import DeniedFlow, Flow, FlowKey, FlowTable
from slim.broker.local import messages
from slim.broker.loop import Loop
from slim.broker.traps_links import Control

if TYPE_CHECKING:
    from slim.broker.context import TrapContext

WORKLOAD, OTHER = 7, 8
TO = Endpoint.parse("10.77.2.2:80")


class Asker:
    """A link to control that keeps what is sent, and the answers that callers get."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.link = Control("/nowhere", lambda message, fds: None)
        self.flows = FlowTable()
        self.link.context = cast(
            "TrapContext",
            SimpleNamespace(
                loop=Loop(),
                settings=SimpleNamespace(resolve_budget_ms=1000, deny_errno=errno.EACCES),
                counters=Counter(),
                workloads={},
                flows=self.flows,
            ),
        )
        self.sent: list[messages.LookUp] = []
        self.answers: list[Flow] = []
        monkeypatch.setattr(self.link, "send", self._send)

    def _send(self, message: messages.LookUp) -> bool:
        self.sent.append(message)
        return True

    def ask(self, workload: int) -> None:
        self.link.ask(FlowKey(workload, None, TO), 1, self.answers.append, retry=False)


@pytest.fixture
def asker(monkeypatch: pytest.MonkeyPatch) -> Asker:
    return Asker(monkeypatch)


def test_one_question_serves_all_who_ask_the_same(asker: Asker) -> None:
    asker.ask(WORKLOAD)
    asker.ask(WORKLOAD)
    (question,) = asker.sent
    asker.link.on_flow(messages.FlowOverlay(question.token, "no-listener", 1000, ""))
    assert [type(answer).__name__ for answer in asker.answers] == ["OverlayFlow"] * 2


def test_a_workload_that_comes_again_does_not_get_its_predecessors_answer(asker: Asker) -> None:
    asker.ask(WORKLOAD)
    asker.link.drop_workload(WORKLOAD)
    (gone,) = asker.answers
    assert isinstance(gone, DeniedFlow)
    asker.ask(WORKLOAD)
    first, second = asker.sent
    asker.link.on_flow(messages.FlowDenied(first.token, errno.EACCES, 1000, "unknown workload"))
    assert (asker.answers, len(asker.flows)) == ([gone], 0)
    asker.link.on_flow(messages.FlowOverlay(second.token, "no-listener", 1000, ""))
    assert len(asker.answers) == 2


def test_questions_of_other_workloads_stay(asker: Asker) -> None:
    asker.ask(WORKLOAD)
    asker.ask(OTHER)
    asker.link.drop_workload(WORKLOAD)
    asker.link.on_flow(messages.FlowOverlay(asker.sent[1].token, "no-listener", 1000, ""))
    assert len(asker.answers) == 2
