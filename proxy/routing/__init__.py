"""Routing of messages and of requests, pure: no gevent, no socket, no clock.

allowlists         clients, the topics that each may subscribe to, and authentication
router             topic → groups of sessions: the data path
route_cache        a cache of routes, by kind and symbol
order_books        current order books, for sessions that join late
order_router       the data path of order updates: what is held back, sent and left out
order_ownership    the clients that receive an order update
order_history      the order updates of an account, for event streams that ask for what they have missed
order_entries      entries of that history on their way to other nodes of a cluster
conflation         drops the outdated pending messages of a slow client
reconciler         wanted and acked topics, and the next request to Alpaca
subscriber         a session at one feed, its requests and their states; the interface of upstream and downstream
request_builder    one request to Alpaca, bounded in bytes
"""
