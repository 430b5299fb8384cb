"""Toward the algorithms: the client port and its sessions.

server           accepts or refuses requests; the set of open sessions
session          what all sessions have in common
client_session   a session on a WebSocket: its greenlet, the queue of its requests, its liveness
event_stream     a session that is a response of server-sent events: order updates
outbox           a session's bounded queue of frames, and the greenlet that sends them
request_log      the requests and answers of a session, for the log at level debug
hub_budget       a bounded share of the hub's time for work that peers can cause
auth_throttle    the delay of a refusal: of the reply to a failed log-in, or of an HTTP error
quirks           what is done differently for some clients, each with the reason
refusals         what was refused: counted by client, feed and reason, and described for the log
credentials      the key and secret in a request's headers
"""
