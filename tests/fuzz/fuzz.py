"""Fuzz the code that reads untrusted bytes.

`python tests/fuzz/fuzz.py` runs every target with its number of inputs.

atheris (tests/fuzz/requirements.txt) mutates the seeds and keeps inputs that reach new branches. `fuzz.py codec
--inputs 1000` runs one target; an input that breaks it is saved to a file, and `fuzz.py codec FILE` runs it again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

INPUTS = {
    "codec": 200_000,
    "session": 200_000,
    "frames": 100_000,
    "yaml": 50_000,
    "large": 100_000,
    "answer": 20_000,
    "events": 100_000,
}
SECONDS = 1800  # for one target


def fuzz(target: str, arguments: list[str]) -> None:
    """Fuzz a target in this process. Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["proxy", "websocket", "wsproto", "yaml"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def run(target: str, inputs: int) -> bool:
    """Fuzz a target in another process and print its row or its errors.

    Returns whether no input broke it.
    """
    from tests.fuzz.targets import seeds  # imported late: in the other process, atheris must import it first

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        command = [sys.executable, __file__, target, "--libfuzzer", f"-runs={inputs}", "-seed=1", "-max_len=1024"]
        command += ["-timeout=20", "-rss_limit_mb=1024", f"-artifact_prefix=fuzz-{target}-", corpus]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    output = done.stdout + done.stderr
    if done.returncode:
        print(output[-4000:])
        return False
    covered = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", output)[-1]
    seconds = time.monotonic() - began
    print(f"| {target} | {inputs:,} | {covered[0]} | {covered[1]} | {seconds:.0f} s |", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=INPUTS)
    parser.add_argument("file", nargs="?", type=Path, help="an input that is run once")
    parser.add_argument("--inputs", type=int, help="number of inputs, instead of the target's own")
    parser.add_argument("--libfuzzer", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.libfuzzer:
        fuzz(options.target, options.libfuzzer)
    if options.file:
        from tests.fuzz.targets import TARGETS

        TARGETS[options.target](options.file.read_bytes())
        return
    print("| target | inputs | branches reached | inputs kept | time |\n|---|---|---|---|---|", flush=True)
    targets = [options.target] if options.target else [*INPUTS]
    broken = [target for target in targets if not run(target, options.inputs or INPUTS[target])]
    if broken:
        sys.exit(f"broken: {', '.join(broken)}")


if __name__ == "__main__":
    main()
