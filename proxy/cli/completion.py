"""`completion SHELL`: the script that completes this command line in bash, zsh or fish, made from the parser itself.

It completes `alpaca-proxy.pyz` called as a command, and `alpaca-proxy`, which is what an alias or a link may be named.
"""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from proxy.cli.parser import parser
from proxy.cli.terminal import Exit

NAMES = ("alpaca-proxy", "alpaca-proxy.pyz")

BASH = """\
# bash completion of alpaca-proxy; to have it: source <(alpaca-proxy.pyz completion bash)
_alpaca_proxy_files() {{
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$1"))
}}
_alpaca_proxy() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb= place=0 i words=
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {valued}) ((i++)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=${{COMP_WORDS[i]}}; else ((place++)); fi ;;
        esac
    done
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
        {files}) _alpaca_proxy_files "$word"; return ;;
        {valued}) return ;;
    esac
    case $verb:$place in
{cases}
    esac
    case $verb in
{options}
    esac
    case $words in
        '<file>'*) _alpaca_proxy_files "$word" ;;
        *) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
    esac
}}
complete -F _alpaca_proxy {names}
"""

ZSH = """\
#compdef {names}
# zsh completion of alpaca-proxy; to have it: source <(alpaca-proxy.pyz completion zsh)
_alpaca_proxy() {{
    local context state state_descr line
    local -A opt_args
    local -a verbs=(
{verbs}
    )
    _arguments -C {options} '1:verb:->verb' '*::argument:->arguments'
    case $state in
        verb) _describe -t verbs verb verbs ;;
        arguments)
            case $words[1] in
{cases}
            esac ;;
    esac
}}
if [[ $funcstack[1] == _alpaca_proxy ]]; then _alpaca_proxy "$@"; else compdef _alpaca_proxy {names}; fi
"""

FISH_HEAD = """\
# fish completion of alpaca-proxy; to have it: alpaca-proxy.pyz completion fish | source
"""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument: its options (none if it goes by its place), what may stand for it, and what it is."""

    options: tuple[str, ...]
    words: tuple[str, ...]
    file: bool
    valued: bool
    text: str


@dataclass(frozen=True, slots=True)
class Verb:
    """A verb, and "" for the command line without one."""

    name: str
    text: str
    arguments: tuple[Argument, ...]

    @property
    def options(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.options]

    @property
    def places(self) -> list[Argument]:
        return [argument for argument in self.arguments if not argument.options]


def run(options: argparse.Namespace) -> Exit:
    print(script(options.shell), end="")
    return Exit.GOOD


def script(shell: str) -> str:
    """The completion script of a shell."""
    whole, *verbs = _verbs(parser())
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](whole, verbs)


def _verbs(whole: argparse.ArgumentParser) -> Iterator[Verb]:
    """The grammar. argparse keeps it in attributes that are not public, though they have never changed."""
    yield Verb("", "", tuple(_arguments(whole)))
    for action in whole._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield Verb(choice.dest, choice.help or "", tuple(_arguments(action.choices[choice.dest])))


def _arguments(of: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in of._actions:
        if not isinstance(action, argparse._SubParsersAction):
            words = tuple(getattr(action, "words", action.choices or ()))
            valued = bool(action.option_strings) and action.nargs != 0
            yield Argument(tuple(action.option_strings), words, action.metavar == "FILE", valued, action.help or "")


def _bash(whole: Verb, verbs: list[Verb]) -> str:
    every = [whole, *verbs]
    names = " ".join(verb.name for verb in verbs)
    places = [(":0", names)]
    for verb in verbs:
        for place, argument in enumerate(verb.places):
            places.append((f"{verb.name}:{place}", "<file>" if argument.file else " ".join(argument.words)))
    options = [(verb.name or "''", " ".join(name for of in verb.options for name in of.options)) for verb in every]
    return BASH.format(
        names=" ".join(NAMES),
        valued=_alternatives(of for verb in every for of in verb.options if of.valued),
        files=_alternatives(of for verb in every for of in verb.options if of.file),
        cases="\n".join(f"        {case}) words={shlex.quote(words)} ;;" for case, words in places if words),
        options="\n".join(f"        {case}) words+={shlex.quote(f' {words}')} ;;" for case, words in options),
    )


def _alternatives(arguments: Iterable[Argument]) -> str:
    return " | ".join(dict.fromkeys(option for argument in arguments for option in argument.options))


def _zsh(whole: Verb, verbs: list[Verb]) -> str:
    return ZSH.format(
        names=" ".join(NAMES),
        verbs="\n".join(f"        {shlex.quote(f'{verb.name}:{verb.text}')}" for verb in verbs),
        options=" ".join(_zsh_argument(argument) for argument in whole.options),
        cases="\n".join(
            f"                {verb.name}) _arguments {' '.join(map(_zsh_argument, verb.arguments))} ;;"
            for verb in verbs
        ),
    )


def _zsh_argument(argument: Argument) -> str:
    """An argument as `_arguments` has it: `(-c --config)'{-c,--config}'[text]:value:_files`."""
    text = re.sub(r"([\[\]:\\])", r"\\\1", argument.text)
    values = "_files" if argument.file else f"({' '.join(argument.words)})"
    value = f":value:{values}" if argument.valued else ""
    if not argument.options:
        return shlex.quote(f":{text}:{values}")
    if len(argument.options) == 1:
        return shlex.quote(f"{argument.options[0]}[{text}]{value}")
    alone = shlex.quote(f"({' '.join(argument.options)})")
    return f"{alone}{{{','.join(argument.options)}}}{shlex.quote(f'[{text}]{value}')}"


def _fish(whole: Verb, verbs: list[Verb]) -> str:
    names = " ".join(verb.name for verb in verbs)
    lines = [FISH_HEAD]
    for command in NAMES:
        lines.append(f"complete -c {command} -f\n")
        bare = f"complete -c {command} -n 'not __fish_seen_subcommand_from {names}'"
        lines += [f"{bare} -a {verb.name} -d {_fish_text(verb.text)}\n" for verb in verbs]
        lines += [f"{bare} {_fish_option(argument)}\n" for argument in whole.options]
        for verb in verbs:
            of = f"complete -c {command} -n '__fish_seen_subcommand_from {verb.name}'"
            lines += [f"{of} {_fish_option(argument)}\n" for argument in verb.options]
            lines += [
                f"{of} {'-F' if argument.file else '-a ' + shlex.quote(' '.join(argument.words))}\n"
                for argument in verb.places
                if argument.file or argument.words
            ]
    return "".join(lines)


def _fish_option(argument: Argument) -> str:
    parts = []
    for option in argument.options:
        parts.append(f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}")
    if argument.valued:
        parts.append("-r -F" if argument.file else "-x")
    return " ".join([*parts, "-d", _fish_text(argument.text)])


def _fish_text(text: str) -> str:
    """In single quotes, within which fish takes a backslash before a quote or another backslash alone."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
