"""alpaca-proxy: many algorithms on one Alpaca streaming connection.

    Alpaca ──1 connection a feed──► upstream ──► router ──► outbox ──► algorithm
                                       ▲            ▲  ╲──► outbox ──► algorithm
                                       └── ledger ◄─┴── session ◄───── (subscribe)

How a message travels: the upstream greenlet receives frames (`net.upstream`), the router splits them and gathers their
bodies, untouched, for the groups of sessions that hold the same subscription (`routing.router`), and each session's
outbox takes the joined batch (`net.outbox`). How a request travels: a client's greenlet reads frames
(`net.conversation`), the session turns them into outcomes (`protocol.session`), and the ledger turns what all sessions
want into the difference that Alpaca is asked for, one request at a time (`routing.ledger`).

Imports point down only:

    cli, demo      verbs
    gateway        builds and owns every part; the only module that knows everyone
    simulator/     a stand-in for Alpaca: a product feature, and what the tests run against
    net/           how it travels: the only package that touches gevent, gevent-websocket and websocket-client
    config/        the typed configuration; metrics, snapshot, logs beside it
    routing/       who hears it: allowlists, ledger, router, orders; pure
    protocol/      what is said: endpoints, topics, codecs, both sides of every dialect; pure
    errors

Pure means: bytes and events in, outcomes out; no gevent, no socket, no clock. A thin layer performs the outcomes.

Promises, in this order: indistinguishable from Alpaca for an unmodified SDK; undisturbed: nothing that one algorithm or
Alpaca does costs another a message; unseen: no latency worth measuring.
"""

from proxy.version import __version__

__all__ = ["__version__"]
