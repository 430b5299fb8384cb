"""Several nodes that share one connection to Alpaca for each account and feed.

    clients ─► edge's supervisor ─► ClusterSource ─► LeaderLink ═══► NodeSession ─► leader's supervisor ─► Alpaca
                                        ▲ role
    Redis ◄─► registry ◄─► member ◄─► election

node          this node: its members, the greenlet that speaks to Redis
member        one feed on this node: leads or follows, as its election says
source        what the feed's supervisor reads from: Alpaca or the leader
election      the rules: who claims a lease, who follows whom (pure)
lease         the permission to lead a feed, as a signed text (pure)
registry      access to Redis: leases, fencing tokens, the list of nodes, places of clients
places        `max_connections` of clients over all nodes
leader_link   the edge's end of a link: a source of its feed
leader_history  what the router of order updates reads on an edge
node_session  the leader's end of a link: a session of another node
order_replay  the older entries of the history of order updates, for an edge
node_server   the port for nodes
dialect       the messages between nodes (pure)

Every node is the same program with the same file. For each account and feed one node leads: it has the connection to
Alpaca, and the other nodes, the edges, are its clients. Redis holds leases, the list of nodes and numbers of sessions,
no market data. Only a proxy with a `cluster:` section imports this package.
"""
