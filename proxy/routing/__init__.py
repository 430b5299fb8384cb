"""Who hears it: allowlists, claims and routes, pure. No gevent, no socket, no clock."""
