"""What the admin port shows of a snapshot, besides metrics: `document` is /status.json, `page` the status page."""
