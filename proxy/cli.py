"""The command line: verbs, parsed, called, printed, with an exit code.

0 good; 1 `check` found problems or a run failed; 2 usage; 78 a run whose configuration cannot work.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from proxy import config as configuration
from proxy.config import Config
from proxy.errors import ConfigError, StartError
from proxy.version import describe

GOOD, FAILED, USAGE, BAD_CONFIG = 0, 1, 2, 78
DEFAULT_CONFIG = "config/proxy.yaml"
CONFIG_VARIABLE = "ALPACA_PROXY_CONFIG"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one verb; the exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except StartError as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return FAILED
    except BrokenPipeError:
        # Whoever read our output has left; Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def _parser() -> argparse.ArgumentParser:
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help=f"the configuration; else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}",
    )
    parser = argparse.ArgumentParser(
        prog="alpaca-proxy",
        parents=[file],
        description="Many algorithms on one Alpaca streaming connection. Without a verb: run the proxy.",
        epilog="Start with `demo`, which needs no account and no files.",
    )
    parser.add_argument("--version", action="version", version=describe())
    parser.set_defaults(run=_run)
    verbs = parser.add_subparsers(title="verbs", metavar="VERB")

    check = verbs.add_parser("check", parents=[file], help="validate the configuration; say who may see what")
    check.set_defaults(run=_check)

    demo = verbs.add_parser("demo", help="a simulated market, the proxy and two algorithms: no account, no files")
    demo.add_argument("--seconds", type=_positive, metavar="N", help="end by itself after so many seconds")
    demo.set_defaults(run=_demo)

    simulate = verbs.add_parser("simulate", help="the simulated Alpaca alone, to develop against")
    simulate.add_argument("--port", type=int, default=8770, metavar="N", help="the port (8770)")
    simulate.set_defaults(run=_simulate)

    keygen = verbs.add_parser("keygen", help="a new client: key, secret, and the YAML to paste")
    keygen.add_argument("name", metavar="NAME", help="the algorithm's name")
    keygen.set_defaults(run=_keygen)
    return parser


def _positive(text: str) -> float:
    number = float(text)
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("a number of seconds above 0")
    return number


def _path(options: argparse.Namespace, environ: Mapping[str, str]) -> Path:
    given: Path | None = getattr(options, "config", None)
    return given or Path(environ.get(CONFIG_VARIABLE) or DEFAULT_CONFIG)


def _run(options: argparse.Namespace) -> int:
    from proxy import logs  # the proxy itself is only imported where it is needed: `check` and `keygen` stay quick
    from proxy.gateway import Gateway

    path = _path(options, os.environ)
    try:
        config = configuration.load(path, os.environ)
    except ConfigError as error:
        _fail(_with_next_step(error, path))
        return BAD_CONFIG
    logs.set_up(config.log.format, config.log.level)
    log = logs.Log("proxy")
    gateway = Gateway(config, read=lambda: configuration.load(path, os.environ))
    gateway.start()
    log.info("started", version=describe(), config=path)
    for warning in configuration.warnings(config, path):
        log.warning("config", warning=warning)
    scheme = "ws" if config.listen.tls is None else "wss"
    host, port = gateway.server.address
    log.info("listening", clients=len(config.clients), accounts=len(config.accounts), at=f"{scheme}://{host}:{port}")
    host, port = gateway.admin.address
    log.info("admin", at=f"http://{host}:{port}/metrics")
    gateway.wait()
    return GOOD


def _check(options: argparse.Namespace) -> int:
    path = _path(options, os.environ)
    try:
        config = configuration.load(path, os.environ)
    except ConfigError as error:
        return _fail(_with_next_step(error, path))
    print(access_table(config))
    for warning in configuration.warnings(config, path):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{path}: good")
    return GOOD


def _demo(options: argparse.Namespace) -> int:
    from proxy.demo import Demo

    return GOOD if Demo(seconds=options.seconds).run() else FAILED


def _simulate(options: argparse.Namespace) -> int:
    from proxy import simulator

    def ready(running: simulator.Simulator) -> None:
        print(
            f"A simulated Alpaca at {running.url}, key `key`, secret `secret`. In the proxy's configuration:",
            flush=True,
        )
        urls = f"data_url: {running.url}, trading_url: {running.url}"
        print(f"  accounts: {{simulated: {{key: key, secret: secret, {urls}}}}}")
        print("Ctrl-C ends it.", flush=True)

    try:
        simulator.run(port=options.port, ready=ready)
    except OSError as error:
        raise StartError(f"cannot listen on port {options.port}: {error.strerror}; name another with --port") from error
    return GOOD


def _keygen(options: argparse.Namespace) -> int:
    if not options.name.replace("-", "").replace("_", "").isalnum():
        return _fail(f"{options.name!r} is no name for a client: letters, digits, - and _ only") or USAGE
    secret = secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    print(f"""\
For the algorithm (the secret is shown this once):
  key     {options.name}
  secret  {secret}

For the proxy's configuration, under clients:
  {options.name}:
    key: {options.name}
    secret: sha256:{digest}
    allow:
      iex: {{trades: [AAPL]}}""")
    return GOOD


def access_table(config: Config) -> str:
    """Who may see what, a line for each client, feed and channel. No secret is in it."""
    rows = [("CLIENT", "FEED", "ACCOUNT", "CHANNEL", "SYMBOLS")]
    for client in config.directory():
        if not client.allow.feeds():
            rows.append((client.name, "-", "-", "-", "nothing"))
        for feed in client.allow.feeds():
            for channel, entries in client.allow.entries(feed).items():
                shown = " ".join(entries[:12]) + (f" and {len(entries) - 12} more" if len(entries) > 12 else "")
                rows.append((client.name, feed, client.account(feed), channel, shown or "nothing"))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[4]]) for row in rows
    )


def _with_next_step(error: ConfigError, path: Path) -> str:
    count = len(error.problems)
    tail = "" if path.exists() else "\nname another with -c FILE, or try `demo`, which needs none"
    return f"{error}{tail}" if count == 1 else f"{error}\n{count} problems"


def _fail(sentence: str) -> int:
    print(sentence, file=sys.stderr)
    return FAILED
