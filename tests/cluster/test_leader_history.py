"""The catching up of a node with the history of its leader; the leader and Alpaca's records are played."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import gevent
import pytest

from proxy.cluster.dialect import CaughtUp
from proxy.cluster.leader_history import LeaderHistory
from proxy.routing.order_router import Recovery
from tests.routing.test_order_following import LISTENING
from tests.routing.test_order_router import SECOND, Member, Reader, make_router


class Records(Reader):
    """An `OrderReader` that notes how recoveries end."""

    def __init__(self) -> None:
        super().__init__()
        self.complete: list[bool] = []

    def stop(self) -> None:
        """Nothing is read."""

    def end_recovery(self, recovery: Recovery, records: Iterable[Any] | None) -> None:
        self.complete.append(records is not None)


@pytest.mark.parametrize("listens_before", [True, False])
def test_what_is_missed_before_the_answer_is_recovered_or_told(listens_before: bool) -> None:
    """A session that waits is told after two seconds that it listens; Alpaca has not answered the leader by then."""
    records = Records()
    router = make_router(reader=records)
    router.acked_changed(frozenset())
    history = LeaderHistory(router, records)  # type: ignore[arg-type]
    history.follow()
    if listens_before:
        router.set_subscription(Member("alpha"), LISTENING)
    asked = history.claim()
    records.now += 2 * SECOND
    router.set_subscription(Member("beta"), LISTENING)
    records.now += SECOND
    router.acked_changed(LISTENING)
    history.caught_up(asked, CaughtUp("a", 0, True))
    gevent.sleep(0)
    assert records.complete == [listens_before]
    history.stop()
