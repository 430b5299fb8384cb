"""A proxy without `cluster:` pays nothing for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """\
from gevent import monkey
monkey.patch_all()
import sys
from pathlib import Path
from proxy.config.model import parse
from proxy.gateway import Gateway
config = '''
listen: {port: 0}
admin: {port: 0}
accounts: {main: {key: key, secret: secret}}
clients: {one: {key: one, secret: canary-of-a-client, allow: {iex: "*", trading: {trade_updates: ["*"]}}}}
'''
gateway = Gateway(parse(config, "proxy.yaml", {}, Path(".")))
gateway.start()
for feed in ("iex", "trading"):
    gateway.upstream(next(iter(gateway.config.directory)), feed)
gateway.stop()
print([name for name in sys.modules if name.split(".")[0] == "redis" or name.startswith("proxy.cluster")])
"""


def test_nothing_of_the_cluster_is_loaded() -> None:
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
