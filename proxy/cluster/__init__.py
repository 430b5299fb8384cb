"""Several nodes that share one connection to Alpaca for each account and feed.

registry      access to Redis: leases, fencing tokens, the list of nodes

Every node is the same program with the same file. For each account and feed one node leads: it has the connection to
Alpaca, and the other nodes are its clients. Redis holds leases and the list of nodes, no market data. Only a proxy with
a `cluster:` section imports this package.
"""
