"""Argument parser of the command line.

The scripts of `completion` are generated from this parser.
"""

from __future__ import annotations

import argparse
import datetime
import re
import zoneinfo
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from proxy.alpaca.endpoints import endpoint, feed_names
from proxy.cli import answers
from proxy.cli.terminal import CONFIG_VARIABLE, DEFAULT_CONFIG, command
from proxy.config import values
from proxy.observe.version import describe

SHELLS = ("bash", "zsh", "fish")
SIMULATOR_PORT = 8770
REPLAY_PORT = 9000

# The options of `simulate` that set a fault, its metavar ("": none) and its help.
FAULTS = (
    ("drop", "SECONDS", "end every connection each time that so many seconds have passed"),
    ("refuse", "CODE", "refuse the upgrade (429, 502, 503), the log-in (402, 406, 409, 411, 500) or a subscription"),
    ("stall", "STEP", "leave a step unanswered: upgrade, greeting, auth, subscribe, or connection (pings too)"),
    ("silence", "", "send no data, while requests and pings are answered"),
    ("feeds", "FEEDS", "limit these faults to some feeds, such as iex,trading"),
    ("rest", "KIND", "fail the REST calls: away, 429, 500, html, slow, hang, cut, shape, or none (there is no REST)"),
    ("rate", "N", "price changes a second on each feed (20)"),
    ("symbol-limit", "N", "the plan's number of symbols for trades and quotes; more gets 405"),
)

# An example of each verb, with `{}` for the command that starts this program.
EXAMPLES = {
    "check": "{} check -c config/proxy.yaml",
    "explain": "{} explain momentum iex trades AAPL -c config/proxy.yaml",
    "demo": "{} demo --seconds 30",
    "simulate": "{} simulate --drop 20 --feeds iex,trading",
    "replay": "{} replay recordings/iex-2026-11-27T14Z.jsonl.zst --speed 10",
    "keygen": "{} keygen momentum",
    "init": "{} init my-proxy.yaml --client momentum:iex:trades:AAPL,MSFT --yes",
    "status": "{} status --watch -c config/proxy.yaml",
    "reload": "{} reload -c config/proxy.yaml",
    "healthcheck": "{} healthcheck --live -c config/proxy.yaml",
    "schema": "{} schema > config/alpaca-proxy.schema.json",
    "completion": 'eval "$({} completion bash)"',
}

EPILOG = """\
example:
  {} -c config/proxy.yaml

Start with `demo`, which needs no account and no files; then `init`, `check`, and run without a verb.
Exit status: 0 good; 1 the check found problems, or a run failed; 2 usage; 78 the configuration cannot work.
"""

T = TypeVar("T")


def parser(complete_files: object = None) -> argparse.ArgumentParser:
    """Return the parser. Its result has `verb`, the name of the module to run.

    `complete_files` becomes the attribute `complete` of each argument that is a file: shtab.FILE, for `completion`.
    """
    file = argparse.ArgumentParser(add_help=False)
    config = file.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help=f"the configuration; else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}",
    )
    root: argparse.ArgumentParser = _Parser(
        prog="alpaca-proxy",
        parents=[file],
        description="Many algorithms on one Alpaca streaming connection. Without a verb: run the proxy.",
        epilog=EPILOG.format(command()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    root.add_argument("--version", action=_Version, help="version, commit and Python")
    root.set_defaults(verb="run")
    verbs = root.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = verbs.add_parser(
            name,
            parents=[*parents],
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=f"example:\n  {EXAMPLES[name].format(command())}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        added.set_defaults(verb=name)
        return added

    check = verb("check", "validate the configuration and show what each client may see", file)
    check.add_argument(
        "--online", action="store_true", help="also log in once per account, which takes its connection slot meanwhile"
    )

    explain = verb("explain", "show whether a client may see a topic, and which line decides", file)
    explain.add_argument("client", metavar="CLIENT", help="its name in the configuration")
    explain.add_argument(
        "feed", metavar="FEED", choices=_Suggestions(feed_names()), help="for example iex, crypto, trading"
    )
    explain.add_argument(
        "channel", metavar="CHANNEL", choices=_Suggestions(_channels()), help="for example trades, quotes, bars"
    )
    orders = 'a symbol, "*", or on trading a client_order_id or symbol:TEXT'
    explain.add_argument("symbol", metavar="SYMBOL", help=orders)

    demo = verb("demo", "run a simulated market, the proxy and two algorithms: no account, no files")
    demo.add_argument("--seconds", type=_seconds, metavar="N", help="stop after N seconds")
    demo_files = demo.add_argument(
        "--replay", type=Path, nargs="+", default=[], metavar="FILE", help="recordings, instead of a simulated market"
    )

    simulate = verb("simulate", "run the simulated Alpaca alone, to develop against")
    port = _setting(values.port)
    simulate.add_argument("--port", type=port, default=SIMULATOR_PORT, metavar="N", help=f"the port ({SIMULATOR_PORT})")
    for name, metavar, text in FAULTS:
        option = f"--{name}"
        if metavar:
            simulate.add_argument(option, type=_fault(name), metavar=metavar, help=text)
        else:
            simulate.add_argument(option, action="store_const", const="on", help=text)

    replay = verb("replay", "replay recordings as a stand-in for Alpaca, to develop against")
    files = replay.add_argument("files", type=Path, nargs="+", metavar="FILE", help="recordings, of any feeds")
    replay.add_argument("--port", type=port, default=REPLAY_PORT, metavar="N", help=f"the port ({REPLAY_PORT})")
    speed = "1 for the recorded pace, 10 for ten times that, or max: as fast as every client reads"
    replay.add_argument("--speed", type=_speed, default=1.0, metavar="N", help=speed)
    replay.add_argument(
        "--from", dest="begin", type=_clock, metavar="HH:MM", help="of each day, leave out what is earlier"
    )
    replay.add_argument("--to", dest="end", type=_clock, metavar="HH:MM", help="of each day, leave out what is later")
    replay.add_argument(
        "--zone", type=_zone, default="UTC", metavar="NAME", help="of these times: America/New_York, say"
    )
    replay.add_argument("--shift", action="store_true", help="move the messages' timestamps to now")
    replay.add_argument("--symbols", type=_symbols, default=frozenset(), metavar="LIST", help="only these: AAPL,MSFT")
    replay.add_argument("--loop", action="store_true", help="begin anew at the end")
    sessions = "begin when N sessions have subscribed (1)"
    replay.add_argument("--wait", type=_setting(values.whole(1, 10_000)), default=1, metavar="N", help=sessions)

    keygen = verb("keygen", "generate a new client: key, secret, and the YAML to paste")
    keygen.add_argument("name", type=_setting(values.name), metavar="NAME", help="the algorithm's name")

    init = verb("init", "write a commented starter configuration; never overwrites a file")
    file_to_write = init.add_argument(
        "file",
        type=Path,
        nargs="?",
        metavar="FILE",
        help=f"the file to write; else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}",
    )
    init.add_argument(
        "--client",
        dest="clients",
        action="append",
        type=_setting(answers.client),
        metavar="NAME:FEED:CHANNEL:SYMBOLS",
        help="an algorithm and what it may see, as in momentum:iex:trades:AAPL,MSFT; may be repeated",
    )
    init.add_argument("--yes", action="store_true", help="ask nothing, and take the defaults")

    status = verb("status", "show the running proxy: feeds, clients, slow sessions", file)
    status.add_argument("--json", action="store_true", help="print /status.json, for programs")
    status.add_argument("--watch", action="store_true", help="repeat every two seconds, until Ctrl-C")

    verb("reload", "have the running proxy read its configuration again, and show what that changed", file)

    healthcheck = verb("healthcheck", "exit with status 0 if the running proxy is ready, for containers", file)
    healthcheck.add_argument(
        "--live",
        action="store_true",
        help="ask only whether it is alive: an outage of Alpaca is no reason to restart it",
    )

    verb("schema", "print the JSON schema of the configuration, for editors")

    completion = verb("completion", "print the completion script of a shell")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))

    for argument in (config, file_to_write, files, demo_files):
        argument.complete = complete_files  # type: ignore[attr-defined]
    return root


class _Parser(argparse.ArgumentParser):
    """Parser whose errors propose a similar choice, or -c for a configuration."""

    def error(self, message: str) -> NoReturn:
        """Print the error and exit with status 2."""
        file = re.search(r"(?:unrecognized arguments: |unknown \")([^\s\"]+\.ya?ml)\b", message)
        super().error(f"pass a configuration with -c, as in -c {file[1]}" if file else message)

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(name) for name in action.choices]
        hint = values.nearest(value, names)
        tail = f'did you mean "{hint}"?' if hint else f"there is {', '.join(names)}"
        if value in ("run", "start", "serve") and "check" in names:
            tail = "the proxy runs without a verb"
        raise argparse.ArgumentError(action, f'unknown "{value}"; {tail}')


class _Version(argparse.Action):
    """`--version`; its text is made on demand, because that may call git."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe())
        parser.exit()


class _Suggestions(tuple[str, ...]):
    """Choices that completion offers; every other value is valid too."""

    def __contains__(self, value: object) -> bool:
        return True


def _channels() -> tuple[str, ...]:
    endpoints = filter(None, map(endpoint, feed_names()))
    return tuple(dict.fromkeys(channel for feed in endpoints for channel in feed.channels))


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("should be a number of seconds above 0")
    return number


def _speed(text: str) -> float | None:
    """Return the factor; None for `max`."""
    if text == "max":
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("should be a number above 0, or max")
    return number


def _clock(text: str) -> datetime.time:
    try:
        time = datetime.time.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("should be a time such as 09:30") from None
    if time.tzinfo is not None:
        raise argparse.ArgumentTypeError("should be a time such as 09:30, without an offset; --zone names its zone")
    return time


def _zone(text: str) -> datetime.tzinfo:
    if text == "UTC":
        return datetime.timezone.utc
    try:
        return zoneinfo.ZoneInfo(text)
    except (ValueError, OSError, zoneinfo.ZoneInfoNotFoundError):
        raise argparse.ArgumentTypeError(
            f'unknown time zone "{text}"; should be one such as America/New_York'
        ) from None


def _symbols(text: str) -> frozenset[str]:
    return frozenset(filter(None, text.split(",")))


def _fault(name: str) -> Callable[[str], str]:
    """Return an argparse type for the value of a fault, which stays text."""

    def check(text: str) -> str:
        from proxy.simulator import fault_settings  # loads the simulator, which the other verbs do not need

        try:
            fault_settings.read(name, text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error).removeprefix(f"{name} ")) from None
        return text

    return check


def _setting(read: Callable[[object], T]) -> Callable[[str], T]:
    """Return an argparse type that decodes an argument as the configuration does."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except values.Unsuitable as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
