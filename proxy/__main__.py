"""`python -m proxy` and alpaca-proxy.pyz start here, and gevent's patch comes before every other import."""

from gevent import monkey

monkey.patch_all()

import sys

from proxy.cli import main

if __name__ == "__main__":
    sys.exit(main())
