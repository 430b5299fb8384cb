"""What Alpaca and its clients say, pure: bytes in, outcomes out; no gevent, no socket, no clock, no logging.

endpoints         feeds, their paths, channels and dialects: the one table
topics            (channel, symbol) and sets of them
codec             JSON and msgpack: frames split, bodies joined, values decoded by type
transcode         one message from one codec into the other, exact to the nanosecond
timestamps        nanoseconds in both codecs' spellings
event_time        when a message was made
market            the market dialect: requests, answers, error codes
trading           the trading dialect of `/stream`
legacy            the names and shapes of 2020, in the trading grammar
plain_pairs       crypto pairs without a slash, as before 2022
client_protocol   the client's side of a conversation: the proxy speaks to Alpaca
server_protocol   the server's side: algorithms speak to the proxy
cooperative       long computations as generators that pause
lru_cache         a small cache of the results of long computations
"""
