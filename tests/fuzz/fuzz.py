"""Fuzzing of what reads bytes of strangers: `python tests/fuzz/fuzz.py` gives each target its number of inputs.

Inputs are not random: atheris (tests/fuzz/requirements.txt) grows them from the seeds, keeping what reaches branches
that none before it reached. `fuzz.py codec --inputs 1000` runs one target for a while; what breaks it is kept in a
file, which `fuzz.py codec FILE` runs again.
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

INPUTS = {"codec": 200_000, "session": 200_000, "frames": 100_000, "yaml": 50_000}
SECONDS = 1800  # for one target


def fuzz(target: str, arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["proxy", "wsproto", "yaml"], enable_loader_override=False):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[target])
    atheris.Fuzz()


def run(target: str, inputs: int) -> bool:
    """Runs a target in a process of its own and prints a line of what came of it. Whether nothing broke it."""
    from tests.fuzz.targets import seeds  # not sooner: in the other process it is atheris that imports it

    with tempfile.TemporaryDirectory() as corpus:
        for number, seed in enumerate(seeds(target)):
            (Path(corpus) / str(number)).write_bytes(seed)
        command = [sys.executable, __file__, target, "--libfuzzer", f"-runs={inputs}", "-seed=1", "-max_len=1024"]
        command += ["-timeout=20", "-rss_limit_mb=1024", f"-artifact_prefix=fuzz-{target}-", corpus]
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    said = done.stdout + done.stderr
    if done.returncode:
        print(said[-4000:])
        return False
    covered = re.findall(r"cov: (\d+) ft: \d+ corp: (\d+)", said)[-1]
    took = time.monotonic() - began
    print(f"| {target} | {inputs:,} | {covered[0]} | {covered[1]} | {took:.0f} s |", flush=True)
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", nargs="?", choices=INPUTS)
    parser.add_argument("file", nargs="?", type=Path, help="an input to run once")
    parser.add_argument("--inputs", type=int, help="how many, in place of the fixed number")
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
