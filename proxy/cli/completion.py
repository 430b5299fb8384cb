"""`completion SHELL`: completion script for bash, zsh or fish.

It is generated from the parser, and completes the commands `alpaca-proxy.pyz` and `alpaca-proxy` (the usual name of an
alias or a link).
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
# bash completion of alpaca-proxy; to enable it: source <(alpaca-proxy.pyz completion bash)
_alpaca_proxy_files() {{
    local IFS=$'\n'
    compopt -o filenames 2>/dev/null
    COMPREPLY=($(compgen -f -- "$1"))
}}
_alpaca_proxy() {{
    local word=${{COMP_WORDS[COMP_CWORD]}} verb= position=0 i words=
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${{COMP_WORDS[i]}} in
            {valued}) ((i++)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=${{COMP_WORDS[i]}}; else ((position++)); fi ;;
        esac
    done
    case ${{COMP_WORDS[COMP_CWORD - 1]}} in
        {files}) _alpaca_proxy_files "$word"; return ;;
        {valued}) return ;;
    esac
    case $verb:$position in
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
# zsh completion of alpaca-proxy; to enable it: source <(alpaca-proxy.pyz completion zsh)
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
# fish completion of alpaca-proxy; to enable it: alpaca-proxy.pyz completion fish | source
"""


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument; a positional has no `options`. `words` are proposed values."""

    options: tuple[str, ...]
    words: tuple[str, ...]
    file: bool
    valued: bool
    text: str


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb; the name is "" for the command line without a verb."""

    name: str
    text: str
    arguments: tuple[Argument, ...]

    @property
    def options(self) -> list[Argument]:
        return [argument for argument in self.arguments if argument.options]

    @property
    def positionals(self) -> list[Argument]:
        return [argument for argument in self.arguments if not argument.options]


def run(options: argparse.Namespace) -> Exit:
    print(script(options.shell), end="")
    return Exit.GOOD


def script(shell: str) -> str:
    """Return the completion script of a shell."""
    root, *verbs = _verbs(parser())
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](root, verbs)


def _verbs(root: argparse.ArgumentParser) -> Iterator[Verb]:
    """Yield the verbs of the parser.

    argparse keeps them in private attributes, which have never changed.
    """
    yield Verb("", "", tuple(_arguments(root)))
    for action in root._actions:
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                yield Verb(choice.dest, choice.help or "", tuple(_arguments(action.choices[choice.dest])))


def _arguments(verb_parser: argparse.ArgumentParser) -> Iterator[Argument]:
    for action in verb_parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            words = tuple(getattr(action, "words", action.choices or ()))
            valued = bool(action.option_strings) and action.nargs != 0
            yield Argument(tuple(action.option_strings), words, action.metavar == "FILE", valued, action.help or "")


def _bash(root: Verb, verbs: list[Verb]) -> str:
    all_verbs = [root, *verbs]
    names = " ".join(verb.name for verb in verbs)
    positionals = [(":0", names)]
    for verb in verbs:
        for position, argument in enumerate(verb.positionals):
            positionals.append((f"{verb.name}:{position}", "<file>" if argument.file else " ".join(argument.words)))
    options = [
        (verb.name or "''", " ".join(name for option in verb.options for name in option.options)) for verb in all_verbs
    ]
    return BASH.format(
        names=" ".join(NAMES),
        valued=_alternatives(option for verb in all_verbs for option in verb.options if option.valued),
        files=_alternatives(option for verb in all_verbs for option in verb.options if option.file),
        cases="\n".join(f"        {case}) words={shlex.quote(words)} ;;" for case, words in positionals if words),
        options="\n".join(f"        {case}) words+={shlex.quote(f' {words}')} ;;" for case, words in options),
    )


def _alternatives(arguments: Iterable[Argument]) -> str:
    return " | ".join(dict.fromkeys(option for argument in arguments for option in argument.options))


def _zsh(root: Verb, verbs: list[Verb]) -> str:
    return ZSH.format(
        names=" ".join(NAMES),
        verbs="\n".join(f"        {shlex.quote(f'{verb.name}:{verb.text}')}" for verb in verbs),
        options=" ".join(_zsh_argument(argument) for argument in root.options),
        cases="\n".join(
            f"                {verb.name}) _arguments {' '.join(map(_zsh_argument, verb.arguments))} ;;"
            for verb in verbs
        ),
    )


def _zsh_argument(argument: Argument) -> str:
    """Return an argument in the syntax of zsh's `_arguments`.

    For example `(-c --config)'{-c,--config}'[text]:value:_files`.
    """
    text = re.sub(r"([\[\]:\\])", r"\\\1", argument.text)
    values = "_files" if argument.file else f"({' '.join(argument.words)})"
    value = f":value:{values}" if argument.valued else ""
    if not argument.options:
        return shlex.quote(f":{text}:{values}")
    if len(argument.options) == 1:
        return shlex.quote(f"{argument.options[0]}[{text}]{value}")
    exclusive = shlex.quote(f"({' '.join(argument.options)})")
    return f"{exclusive}{{{','.join(argument.options)}}}{shlex.quote(f'[{text}]{value}')}"


def _fish(root: Verb, verbs: list[Verb]) -> str:
    names = " ".join(verb.name for verb in verbs)
    lines = [FISH_HEAD]
    for command in NAMES:
        lines.append(f"complete -c {command} -f\n")
        without_verb = f"complete -c {command} -n 'not __fish_seen_subcommand_from {names}'"
        lines += [f"{without_verb} -a {verb.name} -d {_fish_text(verb.text)}\n" for verb in verbs]
        lines += [f"{without_verb} {_fish_option(argument)}\n" for argument in root.options]
        for verb in verbs:
            with_verb = f"complete -c {command} -n '__fish_seen_subcommand_from {verb.name}'"
            lines += [f"{with_verb} {_fish_option(argument)}\n" for argument in verb.options]
            lines += [
                f"{with_verb} {'-F' if argument.file else '-a ' + shlex.quote(' '.join(argument.words))}\n"
                for argument in verb.positionals
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
    """Return text in single quotes; in those fish unescapes only `\\\\` and `\\'`."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
