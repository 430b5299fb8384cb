"""`python -m proxy` with a clock that SIGUSR1 moves 25 hours ahead."""

from gevent import monkey

monkey.patch_all()

import signal  # noqa: E402
import sys  # noqa: E402

from proxy import cli, gateway  # noqa: E402


class MovedClock(gateway.Clock):
    moved = 0.0

    def __call__(self) -> float:
        return super().__call__() + self.moved


def move(*_: object) -> None:
    MovedClock.moved += 25 * 3600.0


signal.signal(signal.SIGUSR1, move)
gateway.Clock = MovedClock  # type: ignore[misc]
sys.exit(cli.main())
