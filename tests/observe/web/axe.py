"""axe-core, the accessibility checker, from npm: fetched once and compared with its digest."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess
import tarfile
from pathlib import Path

PACKAGE = "axe-core@4.14.1"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
SECONDS = 60


def script(cache: Path) -> str:
    """The script of axe-core; the package is kept in `cache`."""
    archive = cache / f"{PACKAGE.replace('@', '-')}.tgz"
    if not archive.exists():
        npm = shutil.which("npm")
        assert npm is not None, "these tests fetch axe-core: apt-get install npm"
        command = [npm, "pack", PACKAGE, "--silent", f"--pack-destination={cache}"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS)
        assert done.returncode == 0, f"npm cannot fetch {PACKAGE}: {done.stderr}"
    digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    assert digest == SHA512, f"{archive} does not have the expected digest"
    with tarfile.open(archive) as members:
        member = members.extractfile("package/axe.min.js")
        assert member is not None
        return member.read().decode()
