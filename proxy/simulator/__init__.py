"""A stand-in for Alpaca: every stream's handshake, acknowledgements and limits, a synthetic market, scripted faults.

It shares no code with the proxy's own reading of the protocol but the table of endpoints and the spelling of
timestamps, so that each can prove the other wrong.

    conversation   the market dialect from Alpaca's side, pure
    trading        the trading dialect from Alpaca's side, pure
    outcomes       what a conversation decides
    account_plan   keys, limits and connection slots of an account, pure
    wire           messages as bytes in the two codecs
    market         the synthetic market: prices, bars
    stocks         the tapes of stocks
    crypto         the tapes of crypto pairs and perpetuals
    options        the tapes of options
    news           the tape of news
    orders         the tape of orders
    exchange       all tapes of a market
    faults         scripted faults
    upgrade        what an upgrade request asks for
    peer           one connection
    server         the simulator as a server
    serve          the simulator as a program
"""

from proxy.simulator.account_plan import AccountPlan
from proxy.simulator.market import Market
from proxy.simulator.serve import run
from proxy.simulator.server import Simulator

__all__ = ["AccountPlan", "Market", "Simulator", "run"]
