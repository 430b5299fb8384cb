"""How it travels: the only package that touches gevent, gevent-websocket and websocket-client."""
