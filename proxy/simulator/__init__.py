"""Simulator of Alpaca's streams, for development and for the tests.

It has every stream's handshake, acknowledgements and limits, a synthetic market, and scripted faults. The endpoint
table and the timestamp format are the only code that it shares with the proxy's implementation of the protocol, so
that each implementation checks the other.

    conversation    market-data session, server side, pure
    trading         trading session, server side, pure
    events          order updates as server-sent events
    outcomes        results of a session's decisions
    account_plan    keys, limits and connection slots of an account, pure
    wire            encoding and decoding in the two codecs
    market          synthetic market: prices, bars
    stocks          message generator for stocks
    crypto          message generators for crypto pairs and perpetuals
    options         message generator for options
    news            message generator for news
    orders          message generator for order updates
    order_records   orders and fills as REST objects, pure
    trading_rest    REST calls that read orders and fills, pure
    exchange        one message generator per feed
    faults          scripted faults
    rest_faults     scripted faults of the REST calls
    fault_settings  settings of a rehearsal, from text
    upgrade         parsing of upgrade requests
    peer            one client connection
    server          the server: listener, connections, publishing, faults
    serve           the simulator as a program
"""

from proxy.simulator.account_plan import AccountPlan
from proxy.simulator.market import Market
from proxy.simulator.serve import run
from proxy.simulator.server import Simulator

__all__ = ["AccountPlan", "Market", "Simulator", "run"]
