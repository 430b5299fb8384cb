"""What is said: Alpaca's protocol, pure. No gevent, no socket, no clock, no logging."""
