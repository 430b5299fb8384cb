"""Alpaca's streaming protocols, pure: no gevent, no socket, no clock, no log.

endpoints         the table of feeds: their paths, channels and dialects
topics            (channel, symbol) and sets of them
codec             JSON and msgpack: split frames, join bodies, decode values by type
large_frames      cuts a large frame into small ones
transcode         converts a message from one codec to the other, exact to the nanosecond
timestamps        nanosecond timestamps in both codecs
event_time        the time at which a message was made
market            the market dialect: requests, replies, error codes
trading           the trading dialect of `/stream`
order_events      order updates as server-sent events
order_records     what the REST API says of orders, and the updates that follow from it
legacy            the names and structures of 2020, in the trading grammar
plain_pairs       crypto pairs without a slash, as before 2022
client_protocol   the client's side of the protocol: from the proxy to Alpaca
server_protocol   the server's side of the protocol: from the proxy to the algorithms
cooperative       long computations as generators that yield between chunks
"""
