"""Sets the version of all seven wheels: `VERSION` and every edge between them.

./hatchw run bump 0.4.0
"""

from __future__ import annotations

import pathlib
import re
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# `pz-core>=0.3.0,<0.4`: the range between two of our own wheels.
EDGE = re.compile(r'"((?:pz-[a-z]+|penzai)(?:\[[^\]]*\])?)>=[^",]+,<[^"]+"')


def bump(root: pathlib.Path, version: str) -> list[pathlib.Path]:
    """Writes `version` and the edges that follow from it below `root`; returns what changed."""
    match = re.fullmatch(r"(\d+)\.(\d+)\.(\d+)", version)
    if match is None:
        raise ValueError(
            f"bump({version!r}): a version is three numbers such as 0.4.0; pre-releases would "
            "lose to older final releases on the registry."
        )
    ceiling = f"{match[1]}.{int(match[2]) + 1}"
    texts = {root / "VERSION": f"{version}\n"}
    for path in [root / "pyproject.toml", *sorted(root.glob("packages/*/pyproject.toml"))]:
        texts[path] = EDGE.sub(rf'"\g<1>>={version},<{ceiling}"', path.read_text("utf-8"))
    toy = root / "integration_tests/toy_downstream/pyproject.toml"
    if toy.exists():
        texts[toy] = EDGE.sub(rf'"\g<1>>={version},<{ceiling}"', toy.read_text("utf-8"))
    changed = [path for path, text in texts.items() if path.read_text("utf-8") != text]
    for path in changed:
        path.write_text(texts[path], "utf-8")
    return changed


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: bump_version.py VERSION")
    for file in bump(ROOT, sys.argv[1]):
        print(file.relative_to(ROOT))
