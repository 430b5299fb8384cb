"""The command line's grammar: the verbs, their arguments, and how an argument's text becomes its value.

`completion` is made from this parser too: the words that an argument may be are its `choices`, or the attribute
`words` where others are welcome besides; the metavar FILE means that file names are.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn, TypeVar

from proxy.alpaca.endpoints import endpoint, feed_names
from proxy.cli.terminal import CONFIG_VARIABLE, DEFAULT_CONFIG
from proxy.config import values as settings
from proxy.observe.version import describe

SHELLS = ("bash", "zsh", "fish")
SIMULATOR_PORT = 8770

EPILOG = """\
Start with `demo`, which needs no account and no files; then `init`, `check`, and no verb at all.
Exit status: 0 good; 1 the check found problems, or a run failed; 2 usage; 78 the configuration cannot work.
"""

T = TypeVar("T")


def parser() -> argparse.ArgumentParser:
    """The whole grammar. What it parses has `verb`, the name of the module to run."""
    file = argparse.ArgumentParser(add_help=False)
    file.add_argument(
        "-c",
        "--config",
        metavar="FILE",
        type=Path,
        default=argparse.SUPPRESS,
        help=f"the configuration; else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}",
    )
    whole: argparse.ArgumentParser = _Parser(
        prog="alpaca-proxy",
        parents=[file],
        description="Many algorithms on one Alpaca streaming connection. Without a verb: run the proxy.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action=_Version, help="version, commit and Python")
    whole.set_defaults(verb="run")
    verbs = whole.add_subparsers(title="verbs", metavar="VERB")

    def verb(name: str, text: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = verbs.add_parser(name, parents=[*parents], help=text, description=f"{text[0].upper()}{text[1:]}.")
        added.set_defaults(verb=name)
        return added

    check = verb("check", "validate the configuration; say who may see what", file)
    check.add_argument(
        "--online", action="store_true", help="log in once per account too, which takes its connection slot meanwhile"
    )

    explain = verb("explain", "whether a client may see a topic, and by which line", file)
    explain.add_argument("client", metavar="CLIENT", help="its name in the configuration")
    _offer(explain.add_argument("feed", metavar="FEED", help="for example iex, crypto, trading"), feed_names())
    _offer(explain.add_argument("channel", metavar="CHANNEL", help="for example trades, quotes, bars"), _channels())
    explain.add_argument("symbol", metavar="SYMBOL", help='a symbol, "*", or on trading a client_order_id')

    demo = verb("demo", "a simulated market, the proxy and two algorithms: no account, no files")
    demo.add_argument("--seconds", type=_seconds, metavar="N", help="end by itself after so many seconds")

    simulate = verb("simulate", "the simulated Alpaca alone, to develop against")
    port = _setting(settings.port)
    simulate.add_argument("--port", type=port, default=SIMULATOR_PORT, metavar="N", help=f"the port ({SIMULATOR_PORT})")

    keygen = verb("keygen", "a new client: key, secret, and the YAML to paste")
    keygen.add_argument("name", type=_setting(settings.name), metavar="NAME", help="the algorithm's name")

    init = verb("init", "write a commented configuration to start from; never over another file")
    init.add_argument(
        "file", type=Path, nargs="?", metavar="FILE", help=f"else ${CONFIG_VARIABLE}, else {DEFAULT_CONFIG}"
    )

    status = verb("status", "what the running proxy does: feeds, clients, who is slow", file)
    status.add_argument("--json", action="store_true", help="as the proxy says it, for programs")
    status.add_argument("--watch", action="store_true", help="again every two seconds, until Ctrl-C")

    verb("healthcheck", "exit status 0 if the running proxy is ready, for containers", file)

    schema = verb("schema", "the JSON schema of the configuration, for editors")
    schema.add_argument("--markdown", action="store_true", help="the reference for people in its place")

    completion = verb("completion", "the completion script of a shell, for it to source")
    completion.add_argument("shell", metavar="SHELL", choices=SHELLS, help=", ".join(SHELLS))
    return whole


class _Parser(argparse.ArgumentParser):
    """Names what was probably meant: another choice, or -c before the name of a configuration."""

    def error(self, message: str) -> NoReturn:
        """Ends with what is wrong with the command line."""
        file = re.search(r"(?:unrecognized arguments: |unknown \")([^\s\"]+\.ya?ml)\b", message)
        super().error(f"a configuration is named with -c, as in -c {file[1]}" if file else message)

    def _check_value(self, action: argparse.Action, value: str) -> None:
        if action.choices is None or value in action.choices:
            return
        names = [str(name) for name in action.choices]
        hint = settings.nearest(value, names)
        tail = f'did you mean "{hint}"?' if hint else f"there is {', '.join(names)}"
        if value in ("run", "start", "serve") and "check" in names:
            tail = "the proxy runs without a verb"
        raise argparse.ArgumentError(action, f'unknown "{value}"; {tail}')


class _Version(argparse.Action):
    """`--version`, whose line is put together only when it is asked for: it may take a call of git."""

    def __init__(self, option_strings: list[str], dest: str, help: str | None = None) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(describe())
        parser.exit()


def _offer(argument: argparse.Action, words: tuple[str, ...]) -> None:
    argument.words = words  # type: ignore[attr-defined]


def _channels() -> tuple[str, ...]:
    known = filter(None, map(endpoint, feed_names()))
    return tuple(dict.fromkeys(channel for feed in known for channel in feed.channels))


def _seconds(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError("should be a number of seconds above 0")
    return number


def _setting(read: Callable[[object], T]) -> Callable[[str], T]:
    """An argument that is read as the setting of the same name is."""

    def parse(text: str) -> T:
        try:
            return read(text)
        except settings.Unsuitable as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse
