"""Lists every public name of every wheel with its signature, so that no change goes unannounced.

    ./hatchw run api            write packages/*/public_api.txt
    ./hatchw run api pz-viz     write that wheel's list only
    ./hatchw run api --check    exit 1 with the difference where a list is stale

A public name is one in the `__all__` of a public module. Signatures carry names, kinds and
defaults; annotations are left out, since their text differs between Pythons.
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import importlib
import inspect
import pathlib
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType

ROOT = pathlib.Path(__file__).resolve().parent.parent
HEADER = "# Public names of {name}; written by scripts/public_api.py.\n"


def modules(name: str) -> Iterator[ModuleType]:
    """Yields the module `name` and its public submodules."""
    module = importlib.import_module(name)
    yield module
    for info in pkgutil.iter_modules(getattr(module, "__path__", [])):
        if not info.name.startswith("_"):
            yield from modules(f"{name}.{info.name}")


def _signature(obj: object) -> str:
    try:
        parameters = inspect.signature(obj).parameters.values()  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return ""
    parts, keyword_only, positional_only = [], False, False
    for parameter in parameters:
        if positional_only and parameter.kind is not parameter.POSITIONAL_ONLY:
            parts.append("/")
        positional_only = parameter.kind is parameter.POSITIONAL_ONLY
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            parts.append("*")
        keyword_only = keyword_only or parameter.kind in (
            parameter.KEYWORD_ONLY,
            parameter.VAR_POSITIONAL,
        )
        prefix = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        has_default = parameter.default is not parameter.empty
        default = f"={_default(parameter.default)}" if has_default else ""
        parts.append(prefix.get(parameter.kind, "") + parameter.name + default)
    if positional_only:
        parts.append("/")
    return f"({', '.join(parts)})"


def _default(value: object) -> str:
    """A constant as it is written, a function or class by its name, else dots."""
    if isinstance(value, tuple):
        return f"({', '.join(map(_default, value))})"
    if value is None or type(value) in (bool, int, float, str):
        return repr(value)
    name = getattr(value, "__name__", None)
    return name if isinstance(name, str) else "..."


def _members(cls: type) -> dict[str, object]:
    """Members of a class: its own, and those of private base classes, which have no entry themselves."""
    members: dict[str, object] = {}
    for base in reversed(cls.__mro__):
        is_private = "._" in base.__module__ or base.__name__.startswith("_")
        if base is cls or (is_private and base.__module__.startswith("pz_")):
            members |= vars(base)
    return members


def _lines(path: str, obj: object) -> Iterator[str]:
    if inspect.isclass(obj):
        signature = "" if issubclass(obj, BaseException) else _signature(obj)
        yield f"{path} class{signature}"
        fields = (
            {f.name for f in dataclasses.fields(obj)} if dataclasses.is_dataclass(obj) else set()
        )
        for name, member in sorted(_members(obj).items()):
            if name.startswith("_") or name in fields:
                continue
            inner = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
            yield f"{path}.{name}{_signature(inner) if callable(inner) else ''}"
    elif callable(obj):
        yield f"{path}{_signature(obj)}"
    else:
        yield path


def listing(import_name: str) -> str:
    """The text of one wheel's list."""
    lines = []
    for module in modules(import_name):
        for name in getattr(module, "__all__", ()):
            obj = getattr(module, name)
            home = getattr(obj, "__module__", module.__name__)
            # What lives in a private module has no other entry that would hold its signature.
            if home != module.__name__ and re.fullmatch(r"pz_\w+(\.[a-z]\w*)*", str(home)):
                lines.append(
                    f"{module.__name__}.{name} is {home}.{getattr(obj, '__qualname__', name)}"
                )
            else:
                lines += _lines(f"{module.__name__}.{name}", obj)
    return "\n".join(sorted(set(lines))) + "\n"


def main() -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 when stale")
    wheels = sorted(path.name for path in (ROOT / "packages").iterdir() if path.is_dir())
    parser.add_argument("wheels", nargs="*", metavar="WHEEL", help="default: every wheel")
    arguments = parser.parse_args()
    if unknown := set(arguments.wheels) - set(wheels):
        parser.error(f"no such wheel: {', '.join(sorted(unknown))}; there are {', '.join(wheels)}")
    check, status = arguments.check, 0
    for folder in (ROOT / "packages" / name for name in arguments.wheels or wheels):
        text = HEADER.format(name=folder.name) + listing(folder.name.replace("-", "_"))
        path = folder / "public_api.txt"
        before = path.read_text("utf-8") if path.exists() else ""
        if before == text:
            continue
        if check:
            status = 1
            difference = difflib.unified_diff(
                before.splitlines(), text.splitlines(), str(path), "now", lineterm="", n=0
            )
            print("\n".join(difference))
        else:
            path.write_text(text, "utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    return status


if __name__ == "__main__":
    sys.exit(main())
