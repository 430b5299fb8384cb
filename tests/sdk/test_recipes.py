"""The exact recipe of docs/sdks.md for JavaScript 2 and 3: two objects, TLS, and a certificate made by its command."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.sdk.conftest import Certificate, recipe
from tests.sdk.environments import Environments
from tests.sdk.sdks import SDKS, Sdk
from tests.sdk.stand import Stand, wait_for
from tests.sdk.tape import STREAMS

pytestmark = [pytest.mark.sdk, pytest.mark.timeout(120, func_only=True)]

CLIENTS = """\
  momentum: {key: momentum, secret: canary, allow: {iex: {trades: [AAPL]}, trading: {trade_updates: ["*"]}}}
"""
# Alpaca's own key, which must not be sent to the proxy, and the client's secret.
KEYS = {"APCA_API_KEY_ID": "PKALPACA", "APCA_API_SECRET_KEY": "alpaca", "MOMENTUM_SECRET": "canary"}
REST = 'console.log(rest.configuration.baseUrl, rest.configuration.keyId, "is where REST goes");\n'


@pytest.mark.parametrize("sdk", [sdk for sdk in SDKS if sdk.tls], ids=str)
def test_two_objects(sdk: Sdk, environments: Environments, certificate: Certificate, tmp_path: Path) -> None:
    folder = environments.driver(sdk).command[-1]
    with Stand(tmp_path, CLIENTS, tls=(certificate.cert, certificate.key)) as stand:
        code = recipe("js", "const Alpaca").replace("127.0.0.1:8765", f"127.0.0.1:{stand.proxy.port}")
        program = Path(folder) / "recipe.js"
        program.write_text(code + REST)
        environment = {"PATH": os.environ["PATH"], **KEYS, **certificate.variables}
        node = subprocess.Popen(["node", program], env=environment, stdout=subprocess.PIPE, text=True)
        try:
            for feed, channel in (("iex", "trades"), ("trading", "trade_updates")):
                wait_for(
                    lambda feed=feed, channel=channel: channel in stand.simulator.subscribed(feed), f"no {channel}"
                )
            for stream in ("stocks", "trading"):
                tape = STREAMS[stream]
                stand.simulator.publish(tape.feed, [next(iter(tape.channels.values()))(7)])
            assert node.stdout is not None
            output: list[str] = []
            while not {"7.25\n", "fill\n"} <= set(output):
                output.append(node.stdout.readline())
                assert output[-1], output
            assert "https://paper-api.alpaca.markets PKALPACA is where REST goes\n" in output
        finally:
            node.kill()
            node.communicate()
