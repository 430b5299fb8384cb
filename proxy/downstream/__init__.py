"""Toward the algorithms: the client port and its sessions.

server           accepts or refuses upgrade requests; the set of open sessions
client_session   one client's session: its greenlet, the queue of its requests, its liveness
outbox           a session's bounded queue of frames, and the greenlet that sends them
request_log      the requests and answers of a session, for the log at level debug
hub_budget       a bounded share of the hub's time for work that peers can cause
auth_throttle    the delay of a refusal: of the reply to a failed log-in, or of an HTTP error
quirks           what is done differently for some clients, each with the reason
refusals         what was refused: counted by client, feed and reason, and described for the log
credentials      the key and secret in a request's headers
"""
