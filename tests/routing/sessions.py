"""Sessions of a reconciler, without sockets: what a client session does with its queue, and what its client is told."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from proxy.alpaca.codec import JSON
from proxy.alpaca.topics import NO_TOPICS, Subscription
from proxy.routing.reconciler import SubscriptionReconciler
from proxy.routing.subscriber import Error, PendingRequest, Queue, RequestOutcome, RequestState, Subscriber


@dataclass(frozen=True)
class Told:
    """An answer or a notice to a client: an error, a state, or both; `request` is None if it is no answer.

    `withheld` are topics that the session holds and the state lacks, since Alpaca does not send them.
    """

    error: Error | None
    state: Subscription | None
    request: PendingRequest | None = None
    withheld: Subscription = NO_TOPICS


class FakeSession:
    """A session at one reconciler. `told` is what its client was sent, in order, `state` the last state among it."""

    def __init__(self, reconciler: SubscriptionReconciler, name: str = "client", patient: bool = False) -> None:
        self.reconciler = reconciler
        self.queue: Queue = deque()
        nowhere: Any = None
        self.subscriber = Subscriber(
            self, nowhere, self.queue, name=name, codec=JSON, put=lambda frame, messages: None, patient=patient
        )
        self.told: list[Told] = []
        self.state: Subscription = NO_TOPICS

    def __repr__(self) -> str:
        return f"<FakeSession {self.subscriber.name} told {self.told}>"

    def news(self) -> list[Subscription | Error | tuple[Error | None, Subscription | None]]:
        """Return what the client was told since the last call: states, errors, and reports as pairs."""
        told, self.told = self.told, []
        return [(one.error, one.state) if one.request is None else one.error or one.state or NO_TOPICS for one in told]

    def request(self, add: Subscription, remove: Subscription = NO_TOPICS, now: float = 0.0) -> PendingRequest:
        """Make a request, and answer it if it is resolved at once."""
        request = PendingRequest(self.subscriber, add, remove, now)
        self.queue.append(request)
        for _ in self.reconciler.request(request):
            pass
        self.release()
        self.answer()
        return request

    def release(self) -> None:
        while self.reconciler.release():
            pass

    def leave(self) -> None:
        self.reconciler.leave(self.subscriber)
        self.release()
        self.queue.clear()

    def revoke(self, topics: Subscription) -> None:
        """Take topics away, as a reload does."""
        self.reconciler.revoke(self.subscriber, topics)
        self.release()
        self.queue.append(None)
        self.answer()

    # routing.subscriber.Session

    def answer(self) -> None:
        while self.queue:
            first = self.queue[0]
            if isinstance(first, PendingRequest) and not first.resolved:
                return
            self.queue.popleft()
            if not isinstance(first, PendingRequest):
                self._tell(None, None)
            elif first.state is RequestState.REFUSED:
                assert first.error is not None
                self.told.append(Told(first.error, None, first))
            else:
                self.reconciler.apply(first)
                self.release()
                self._tell(None, first)

    def report(self, error: Error | None) -> None:
        self._tell(error, None)
        self.answer()

    def abort(self) -> None:
        raise AssertionError("no session is aborted")

    def _tell(self, error: Error | None, request: PendingRequest | None) -> None:
        self.state = self.subscriber.held
        self.told.append(Told(error, self.state, request, self.subscriber.withheld))


def tell(outcomes: Iterable[RequestOutcome]) -> None:
    """Tell the sessions their outcomes, as the supervisor does."""
    for outcome in outcomes:
        subscriber = outcome.subscriber
        assert isinstance(subscriber.session, FakeSession)
        subscriber.session.reconciler.merge(subscriber)
        if outcome.unasked:
            subscriber.session.report(outcome.error)
        else:
            subscriber.session.answer()
