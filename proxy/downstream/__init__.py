"""Toward the algorithms: the client port and its sessions.

server           which requests are upgraded, and the sessions that are open
client_session   one client's session: its greenlet, its requests, its liveness
subscriber       a session at one feed, and the queue of its replies
outbox           a session's bounded outbox, and its one writer
auth_throttle    how long a refused log-in waits for its answer
credentials      key and secret in a request's headers
"""
