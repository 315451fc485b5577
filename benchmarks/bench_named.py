"""What names cost: eager operators, tracing, contraction, compiled programs, import.

Each row compares the named spelling with what one would write by hand on plain arrays, and with
upstream penzai and haliax where they are installed. Small arrays are used on purpose: they show the
overhead, which large ones would hide.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from harness import Row, compare, counted

import pz_named as nx

__all__ = ["PROGRAMS"]

# Our own umbrella has upstream's module paths too, but no code of upstream's.
HAS_UPSTREAM = importlib.util.find_spec("penzai") is not None and (
    importlib.metadata.version("penzai").startswith("0.2.")
)
HAS_HALIAX = importlib.util.find_spec("haliax") is not None
SIZES = {"group": 4, "head": 5, "embed": 6}
Contenders = dict[str, Callable[[], Any]]


def _upstream(data: Any, *names: str) -> Any:
    from penzai.core import named_axes

    return named_axes.wrap(data).tag(*names)


def _haliax(data: Any, *names: str) -> Any:
    import haliax

    return haliax.named(data, names)


def _libraries() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {"upstream": _upstream} if HAS_UPSTREAM else {}
    return found | ({"haliax": _haliax} if HAS_HALIAX else {})


def _targets(reference: str, ratio: float) -> dict[str, float]:
    return {reference: ratio, "upstream": 1.0, "haliax": 1.0}


def _block(*sizes: int) -> jax.Array:
    return jax.random.normal(jax.random.key(0), sizes)


def add_equal_names() -> list[Row]:
    plain = _block(4, 5, 6)
    ours = nx.wrap(plain, *SIZES)
    peers: Contenders = {"jnp": lambda: plain + plain}
    for library, wrap in _libraries().items():
        array = wrap(plain, *SIZES)
        peers[library] = lambda x=array: x + x
    return compare(
        "eager a + b, equal names", lambda: ours + ours, peers, targets=_targets("jnp", 2.0)
    )


def add_transposed() -> list[Row]:
    plain, other = _block(4, 5, 6), _block(6, 5)
    ours, ours_other = nx.wrap(plain, *SIZES), nx.wrap(other, "embed", "head")
    peers: Contenders = {"jnp a + b.T[None]": lambda: plain + other.T[None]}
    for library, wrap in _libraries().items():
        pair = wrap(plain, *SIZES), wrap(other, "embed", "head")
        peers[library] = lambda pair=pair: pair[0] + pair[1]
    return compare(
        "eager a + b, transposed and broadcast",
        lambda: ours + ours_other,
        peers,
        targets=_targets("jnp a + b.T[None]", 1.2),
    )


def _chain(x: Any, y: Any) -> Any:
    for _ in range(100):
        x = (x + y) * 0.5 - y
    return x


def _traced(x: Any) -> Any:
    """The jaxpr, from a new function each time, since JAX keeps what it traced."""
    return jax.make_jaxpr(lambda p, q: _chain(p, q))(x, x)


def trace_chain() -> list[Row]:
    plain = _block(4, 5, 6)
    ours = nx.wrap(plain, *SIZES)
    arrays = {"jnp": plain} | {key: wrap(plain, *SIZES) for key, wrap in _libraries().items()}
    peers: Contenders = {key: lambda x=x: (_traced(x), None)[1] for key, x in arrays.items()}
    rows = compare(
        "trace a chain of 300 operations",
        lambda: (_traced(ours), None)[1],
        peers,
        targets=_targets("jnp", 2.0),
    )
    equations = {key: len(_traced(x).eqns) for key, x in arrays.items()}
    return rows + counted(
        "equations of the chain",
        len(_traced(ours).eqns),
        equations,
        unit="equations",
        targets=_targets("jnp", 1.0),
    )


def lifted_dot() -> list[Row]:
    plain = _block(4, 5, 6, 16)
    names = (*SIZES, "feature")
    lifted, ours = nx.nmap(jnp.dot), nx.wrap(plain, *names).untag("feature")
    by_hand = jax.vmap(jax.vmap(jax.vmap(jnp.dot)))
    peers: Contenders = {"nested jax.vmap": lambda: by_hand(plain, plain)}
    if HAS_UPSTREAM:
        from penzai.core import named_axes

        their_lifted, theirs = named_axes.nmap(jnp.dot), _upstream(plain, *names).untag("feature")
        peers["upstream"] = lambda: their_lifted(theirs, theirs)
    if HAS_HALIAX:
        import haliax

        def product(u: Any, v: Any) -> Any:
            return haliax.dot(u, v, axis="feature")

        array = _haliax(plain, *names)
        mapped = product
        for name in ("embed", "head", "group"):
            mapped = haliax.vmap(mapped, array.resolve_axis(name))
        peers["haliax"] = lambda: mapped(array, array)
    return compare(
        "nmap(jnp.dot) over three names",
        lambda: lifted(ours, ours),
        peers,
        targets=_targets("nested jax.vmap", 1.2),
    )


def contraction() -> list[Row]:
    plain = _block(4, 5, 6, 16)
    names = (*SIZES, "feature")
    ours = nx.wrap(plain, *names)
    peers: Contenders = {"jnp.einsum": lambda: jnp.einsum("abcd,abcd->abc", plain, plain)}
    if HAS_UPSTREAM:
        from penzai.core import named_axes

        array, lifted = _upstream(plain, *names).untag("feature"), named_axes.nmap(jnp.dot)
        peers["upstream"] = lambda: lifted(array, array)
    if HAS_HALIAX:
        import haliax

        other = _haliax(plain, *names)
        peers["haliax"] = lambda: haliax.dot(other, other, axis="feature")
    return compare(
        "nx.dot over the same names",
        lambda: nx.dot(ours, ours, axis="feature"),
        peers,
        targets=_targets("jnp.einsum", 1.5),
    )


def _named_attention(query: Any, key: Any, value: Any) -> Any:
    scores = nx.dot(query, key, axis="feature") * 0.25
    scores = nx.where(nx.causal_mask({"query": 8, "key": 8}), scores, -1e9)
    return nx.dot(nx.softmax(scores, "key"), value, axis="key")


def _plain_attention(query: Any, key: Any, value: Any) -> Any:
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key) * 0.25
    positions = jnp.arange(8)
    scores = jnp.where(positions[:, None] >= positions[None], scores, -1e9)
    return jnp.einsum("bhqk,bhkd->bhqd", jax.nn.softmax(scores, -1), value)


def _upstream_attention(query: Any, key: Any, value: Any) -> Any:
    from penzai.core import named_axes as up

    scores = up.nmap(jnp.dot)(query.untag("feature"), key.untag("feature")) * 0.25
    seen = up.arange("query", 8) >= up.arange("key", 8)
    scores = up.nmap(jnp.where)(seen, scores, -1e9)
    weights = up.nmap(jax.nn.softmax)(scores.untag("key"))
    return up.nmap(jnp.dot)(weights, value.untag("key"))


def _haliax_attention(query: Any, key: Any, value: Any) -> Any:
    import haliax

    scores = haliax.dot(query, key, axis="feature") * 0.25
    rows, columns = (
        haliax.arange(query.resolve_axis("query")),
        haliax.arange(key.resolve_axis("key")),
    )
    scores = haliax.where(rows.broadcast_axis(columns.axes) >= columns, scores, -1e9)
    return haliax.dot(haliax.nn.softmax(scores, axis="key"), value, axis="key")


def _instructions(function: Callable[..., Any], *args: Any) -> int:
    """Instructions of the optimised program, fused computations included."""
    text = jax.jit(function).lower(*args).compile().as_text() or ""
    return len(re.findall(r"^\s+(?:ROOT )?%?[\w.\-]+ = ", text, re.MULTILINE))


def compiled_attention() -> list[Row]:
    plain = [_block(2, 4, 8, 16) for _ in range(3)]
    order = ("batch", "head")
    names = [(*order, position, "feature") for position in ("query", "key", "key")]

    def wrapped(wrap: Callable[..., Any]) -> list[Any]:
        return [wrap(data, *axes) for data, axes in zip(plain, names, strict=True)]

    ours = wrapped(nx.wrap)
    functions = {"jnp": _plain_attention}
    arguments = {"jnp": plain}
    for library, function in (("upstream", _upstream_attention), ("haliax", _haliax_attention)):
        if library in _libraries():
            functions[library] = function
            arguments[library] = wrapped(_libraries()[library])
    counts = {key: _instructions(functions[key], *arguments[key]) for key in functions}
    rows = counted(
        "attention: instructions of the compiled program",
        _instructions(_named_attention, *ours),
        counts,
        unit="instructions",
        targets={"jnp": 1.0},
    )
    programs = {key: jax.jit(functions[key]) for key in functions}
    compiled = jax.jit(_named_attention)
    peers: Contenders = {key: lambda key=key: programs[key](*arguments[key]) for key in functions}
    return rows + compare(
        "attention: one compiled call",
        lambda: compiled(*ours),
        peers,
        targets={"upstream": 1.0, "haliax": 1.0},
    )


def imports() -> list[Row]:
    def load(module: str) -> Callable[[], Any]:
        command = [sys.executable, "-c", f"import {module}"]
        return lambda: subprocess.run(command, check=True) and None

    peers: Contenders = {"import jax": load("jax")}
    if HAS_UPSTREAM:
        peers["upstream"] = load("penzai.core.named_axes")
    if HAS_HALIAX:
        peers["haliax"] = load("haliax")
    return compare(
        "import pz_named", load("pz_named"), peers, max_s=40.0, targets=_targets("import jax", 1.1)
    )


PROGRAMS: dict[str, Callable[[], list[Row]]] = {
    "add, equal names": add_equal_names,
    "add, transposed": add_transposed,
    "trace a chain": trace_chain,
    "lifted dot": lifted_dot,
    "dot": contraction,
    "compiled attention": compiled_attention,
    "import": imports,
}
