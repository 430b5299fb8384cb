"""Toward Alpaca: one supervised connection for each account and feed.

supervisor          connects, logs in, reads, reconnects; connects the router and the reconciler to the connection
alpaca_connection   one open connection: its reader, its one writer, its keep-alive
websocket           websocket-client with a buffered reader, and the dial
ack_dispatcher      delivers acknowledgements to sessions without blocking the hub
feed_stats          lag, age and outages of a feed
"""
