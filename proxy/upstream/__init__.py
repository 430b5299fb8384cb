"""Toward Alpaca: one supervised connection for each account and feed.

supervisor          connects, reads, reconnects; connects the router and the reconciler to the connection
source              the interface of a connection that delivers a feed
connection          the part that every source's WebSocket has: its phase, its end and its writer
alpaca_connection   one connection to Alpaca: log-in, the request under way, keep-alive
websocket           websocket-client with a buffered reader, and the dial
silence             detects a feed that has fallen silent although it is connected
order_reader        reads Alpaca's records of orders, for owners and after an outage
trading_rest        the REST API of an account, read only
feed_stats          lag, age and outages of a feed
"""
