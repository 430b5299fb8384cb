"""A stand-in for Alpaca: every stream's handshake, acknowledgements and limits, a synthetic market, scripted faults.

`conversation` and `trading` decide what is said, `plan` who gets in, `wire` how it looks; `market` and the tapes make
up what happens, `exchange` keeps them going. All of that is pure. `peer` is one connection, `server` the whole, `serve`
the program. Nothing here shares code with the proxy's own reading of the protocol but the table of endpoints and the
spelling of timestamps, so that each can prove the other wrong.
"""

from proxy.simulator.market import Market
from proxy.simulator.plan import Plan
from proxy.simulator.serve import run
from proxy.simulator.server import Simulator

__all__ = ["Market", "Plan", "Simulator", "run"]
