"""What an operator sees: events, numbers and pages, all without secrets.

logs              events by name with fields, folded, for people or machines
recent_events     the newest events, for the status page
snapshot          the state of the whole proxy at one moment
history           rates and lags of the last minutes
metrics           /metrics, from a snapshot
status_document   /status.json, from a snapshot
status_page       the status page, from status.html
tap               samples of one topic as it flows
admin             the admin port
style             colour on terminals
version           which alpaca-proxy this is
"""
