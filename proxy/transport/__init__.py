"""What upstream, downstream and the admin port share of transport.

frames         WebSocket frames as bytes, and the reader of a client's frames
listener       a WSGI server with bounds for unauthenticated sockets
http_request   one HTTP request, bounded in time and bytes
upgrade        the upgrade of a request to a WebSocket
connection     an accepted WebSocket as bytes
origins        which web pages and host names may reach a port
time_slice     how long a greenlet runs before it yields to the hub
clock          monotonic time that ignores gaps while the process was suspended
errors         exceptions of the transport, and their root
"""
