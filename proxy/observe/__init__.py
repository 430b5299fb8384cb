"""Logs, metrics and pages for operators; none of them contains a secret.

logs              named events with fields, without repeats, as text or JSON
recent_events     the newest events, for the status page
snapshot          the state of the whole proxy at one moment
history           rates and lags of the last minutes
metrics           /metrics, from a snapshot
status_document   /status.json, from a snapshot
status_page       the status page, from status.html
tap               samples of the messages of one topic
stalls            the event that the whole proxy stood still
admin             the admin port
process           the identity of this process, for the verb `reload`
style             colour on terminals
version           the version, commit and Python of this process
"""
