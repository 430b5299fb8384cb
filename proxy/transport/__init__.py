"""The transport that upstream, downstream and the admin port share.

frames         WebSocket frames as bytes, and the reader of a client's frames
listener       a WSGI server with limits for unauthenticated sockets
http_request   one HTTP request, bounded in time and bytes
upgrade        the upgrade of a request to a WebSocket
connection     an accepted connection of a client as bytes: a WebSocket, or a response without an end
chunked        chunks of an HTTP response
forwarded      the client's address behind a reverse proxy
origins        the web pages and host names that may reach a port
time_slice     how long a greenlet runs before it yields to the hub
clock          monotonic time that ignores gaps while the process was suspended
errors         exceptions of the transport, and their root
"""
