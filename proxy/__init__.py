"""alpaca-proxy: many algorithms on one Alpaca streaming connection.

    Alpaca ──1 connection a feed──► upstream ──► routing ──► downstream ──► algorithms
                                       ▲            ▲            │
                                       └ reconciler ┴────────────┘  (subscribe)

A message's way: `upstream.supervisor` receives frames, `routing.router` splits them and gathers the bodies, untouched,
for each group of sessions with the same subscription, and each session's `downstream.outbox` takes the joined batch.

A request's way: `downstream.client_session` reads frames, `alpaca.server_protocol` turns them into outcomes, and
`routing.reconciler` turns what all sessions want into the difference that Alpaca is asked for, one request at a time.

Rooms, from the top; imports point down only, and `upstream` and `downstream` never import each other:

    cli          the verbs of the command line, the demo included
    gateway      the composition root: builds, starts, reloads, drains and stops every part
    cluster      several proxies that share the connections to Alpaca: leases, links, takeovers
    recording    Alpaca's messages in files, and the files as data of the simulator
    simulator    a stand-in for Alpaca: a product feature, and what the tests run against
    upstream     toward Alpaca: one supervised connection for each account and feed
    downstream   toward the algorithms: log-in, sessions, outboxes
    observe      logs, metrics, snapshot, status page, admin port
    config       the typed configuration, every problem with its place
    transport    what upstream, downstream and the admin port share: frames, listener, time slices
    routing      who receives a message, pure: allowlists, reconciler, routers, order ownership
    alpaca       what Alpaca and its clients say, pure: endpoints, codecs, dialects, topics

Pure code takes bytes and events and returns outcomes: no gevent, no socket, no clock. A thin layer performs the
outcomes.

Promises, in this order: indistinguishable from Alpaca for an unmodified SDK; undisturbed: nothing that one algorithm or
Alpaca does costs another a message; unseen: no latency worth measuring.
"""

from proxy.observe.version import __version__

__all__ = ["__version__"]
