"""References in a configuration's values: `${…}` stands for text kept outside the file.

    ${NAME}             an environment variable; unset is an error
    ${NAME:-default}    the same, or the default when it is unset or empty
    ${file:PATH}        a file's text without trailing line breaks; relative to the configuration's folder
    $${                 a literal ${

They do not nest. A resolved value is not parsed again, neither for references nor as YAML.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

MAX_FILE = 64 * 1024

_REFERENCE = re.compile(r"(?P<escaped>\$\$\{)|\$\{(?P<inside>[^{}]*)(?P<closed>\})?")
_VARIABLE = re.compile(r"(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<default>:-.*)?", re.DOTALL)


def resolve(text: str, environ: Mapping[str, str], folder: Path) -> tuple[str, bool, list[str]]:
    """Resolve a text's references: the result, whether any part came from outside the file, and the errors."""
    errors: list[str] = []
    external = False

    def value(match: re.Match[str]) -> str:
        nonlocal external
        if match["escaped"]:
            return "${"
        inside = match["inside"]
        if not match["closed"]:
            errors.append('"${" without its "}" (they do not nest); write "$${" for a literal "${"')
        elif inside.startswith("file:") and inside != "file:":
            external = True
            return _file_text(inside[len("file:") :], folder, errors)
        elif (variable := _VARIABLE.fullmatch(inside)) is None:
            errors.append('"${…}" takes NAME, NAME:-default or file:PATH; write "$${" for a literal "${"')
        elif (setting := environ.get(variable["name"])) or (setting is not None and variable["default"] is None):
            external = True
            return setting
        elif variable["default"] is not None:
            return variable["default"][2:]
        else:
            errors.append(f"the environment variable {variable['name']} is not set")
        return ""

    return _REFERENCE.sub(value, text), external, errors


def _file_text(path: str, folder: Path, errors: list[str]) -> str:
    reason = "is empty"
    try:
        # Without O_NONBLOCK, to open a FIFO would wait for its writer.
        with open(os.open(folder / path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise OSError(errno.EINVAL, "it is not a regular file")
            data = file.read(MAX_FILE + 1)
        if len(data) > MAX_FILE:
            reason = f"is larger than {MAX_FILE // 1024} KiB"
        elif text := data.decode("utf-8-sig").rstrip("\r\n"):
            return text
    except UnicodeDecodeError:
        reason = "is not UTF-8"
    except (OSError, ValueError) as error:
        reason = unreadable(error)
    errors.append(f"the file {path!r} {reason}")
    return ""


def unreadable(error: Exception) -> str:
    """The reason why a file could not be read, as the end of a sentence."""
    if isinstance(error, FileNotFoundError):
        return "does not exist"
    if isinstance(error, IsADirectoryError):
        return "is a directory, not a file"
    if isinstance(error, PermissionError):
        return "cannot be read: permission denied"
    return f"cannot be read: {error.strerror}" if isinstance(error, OSError) else "is not a path"
