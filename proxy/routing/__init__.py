"""Who receives a message, pure: no gevent, no socket, no clock.

allowlists         clients, what each may subscribe to, and how it authenticates
router             topic → groups of sessions: the data path
route_cache        the routes that have been computed, by kind and symbol
order_books        books kept in full, for sessions that join late
order_ownership    whose order an update is about
conflation         what may be left out for a slow client
reconciler         wanted and acked topics, and the next request to Alpaca
pending_requests   what each session has requested and been told
request_builder    one request to Alpaca, bounded in bytes
topic_ref_counts   how many requests hold each topic
feed               what a session needs of a feed: the seam between upstream and downstream
"""
