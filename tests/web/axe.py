"""axe-core, the checks for accessibility, as the registry of npm has them: fetched once, checked against its digest."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
import urllib.request
from pathlib import Path

URL = "https://registry.npmjs.org/axe-core/-/axe-core-4.14.1.tgz"
SHA512 = "FHfa+lmNjQZfJz1q8wKqIDwC6DExcHt/pkjNQb09a3NPjCKg2rhu5qb2S4r76ASyFNNtuFooJpZe37OgudVGtQ=="
SECONDS = 30


def script(cache: Path) -> str:
    """Its script; kept in `cache` under its digest's name."""
    kept = cache / f"{hashlib.sha256(SHA512.encode()).hexdigest()[:16]}.js"
    if not kept.exists():
        with urllib.request.urlopen(URL, timeout=SECONDS) as answer:
            archive = answer.read()
        assert base64.b64encode(hashlib.sha512(archive).digest()).decode() == SHA512, f"{URL} is not what it was"
        with tarfile.open(fileobj=io.BytesIO(archive)) as members:
            member = members.extractfile("package/axe.min.js")
            assert member is not None
            kept.write_bytes(member.read())
    return kept.read_text("utf-8")
