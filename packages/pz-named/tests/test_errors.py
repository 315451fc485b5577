"""One row per error: its type, the rule and the values in its text.

Where the text advises a repair, the row's `repair` carries it out.
"""

import collections
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pz_named as nx
from pz_named import shapecheck as chk
from pz_named.arrays import NamedArray, NamedArrayView

pytestmark = pytest.mark.smoke

KEY = jax.random.key(0)


def x():
    """{embed: 3, batch: 2} without positional axes."""
    return nx.wrap(jnp.arange(6.0).reshape(3, 2), "embed", "batch")


def half():
    """{embed: 3} with one positional axis of size 2."""
    return x().untag("batch")


@dataclasses.dataclass(frozen=True)
class Row:
    call: Callable
    error: type
    match: str
    repair: Callable = lambda: None


class OddLeaf:
    """A leaf whose sharding is none that JAX knows."""

    shape = (2,)
    dtype = np.dtype("float32")
    sharding = "odd"


ROWS = {
    # naming
    "tag count": Row(
        lambda: half().tag("a", "b"),
        ValueError,
        r"one name per positional axis.*\(2,\)",
        lambda: half().tag_prefix("a"),
    ),
    "tag integer": Row(lambda: half().tag(3), ValueError, "axis name 3 is an integer"),
    "tag bool": Row(lambda: half().tag(True), ValueError, "axis name True is an integer"),
    "tag taken": Row(
        lambda: half().tag("embed"), ValueError, "'embed' is taken", lambda: half().tag("other")
    ),
    "tag twice": Row(lambda: nx.wrap(jnp.ones((2, 2))).tag("a", "a"), ValueError, "'a' is taken"),
    "tag unhashable": Row(lambda: half().tag(["a"]), TypeError, "unhashable"),
    "tag_prefix count": Row(lambda: half().tag_prefix("a", "b"), ValueError, "1 positional axes"),
    "untag positional": Row(
        lambda: half().untag("embed"),
        ValueError,
        r"positional axes already.*\(2,\)",
        lambda: half().untag_prefix("embed"),
    ),
    "untag unknown": Row(lambda: x().untag("bach"), ValueError, "'bach'.*Did you mean 'batch'"),
    "untag twice": Row(lambda: x().untag("batch", "batch"), ValueError, "given twice"),
    "unwrap leftover": Row(
        lambda: x().unwrap("embed"),
        ValueError,
        r"still has named axes \['batch'\]",
        lambda: x().unwrap("embed", "batch"),
    ),
    "unwrap positional": Row(
        lambda: half().unwrap("embed"),
        ValueError,
        r"positional_shape=\(2,\)",
        lambda: half().untag_prefix("embed").unwrap(),
    ),
    "order_as missing": Row(lambda: x().order_as("batch"), ValueError, r"\['embed'\] missing"),
    "order_like names": Row(
        lambda: x().order_like(half()), ValueError, r"\{embed:3, batch:2\}.*\{2, embed:3\}"
    ),
    "order_like type": Row(
        lambda: x().order_like(3), TypeError, "must be a named array; it is int"
    ),
    "canonicalize": Row(
        lambda: nx.wrap(jnp.ones((1, 1)), "a", 1.5).canonicalize(), TypeError, "not supported"
    ),
    "wrap named": Row(
        lambda: nx.wrap(x()),
        ValueError,
        r"a named array already, \{embed:3, batch:2\}",
        lambda: half().tag("row"),
    ),
    "wrap abstract": Row(lambda: nx.wrap("text"), TypeError, "not a valid JAX array|str"),
    "axis_size": Row(lambda: x().axis_size("bat"), ValueError, "Did you mean 'batch'"),
    # validity
    "plain dict": Row(
        lambda: NamedArray({"a": 2}, jnp.ones(2)).check_valid(),
        ValueError,
        "OrderedDict.*it is dict",
    ),
    "wrong size": Row(
        lambda: NamedArray(collections.OrderedDict(a=3), jnp.ones(2)).check_valid(),
        ValueError,
        r"trailing part.*'a': 3.*\(2,\)",
        lambda: nx.wrap(jnp.ones(2)).tag("a").check_valid(),
    ),
    "size type": Row(
        lambda: NamedArray(collections.OrderedDict(a="3"), jnp.ones(2)).check_valid(),
        ValueError,
        "size of axis 'a' must be an integer; it is '3'",
    ),
    "size list": Row(
        lambda: NamedArray(collections.OrderedDict(a=[3]), jnp.ones(2)).check_valid(),
        ValueError,
        r"must be an integer; it is \[3\]",
    ),
    "name type": Row(
        lambda: NamedArray(collections.OrderedDict({1: 2}), jnp.ones(2)).check_valid(),
        ValueError,
        "axis name 1 is an integer",
    ),
    "no array": Row(
        lambda: NamedArray(collections.OrderedDict(), None).check_valid(),
        ValueError,
        "must be an array.*NoneType",
    ),
    "view shape": Row(
        lambda: NamedArrayView((2,), (0,), {}, jnp.ones(3)).check_valid(),
        ValueError,
        r"data_shape=\(2,\), data_array.shape=\(3,\)",
        lambda: jax.tree.map(
            lambda leaf: leaf[None], half().with_positional_prefix()
        ).check_valid(),
    ),
    "view list": Row(
        lambda: NamedArrayView([2], (0,), {}, jnp.ones(2)).check_valid(),
        ValueError,
        r"data_shape=\[2\]",
    ),
    "view axes": Row(
        lambda: NamedArrayView((2,), (0,), {"a": 0}, jnp.ones(2)).check_valid(),
        ValueError,
        "exactly once",
    ),
    "view negative": Row(
        lambda: NamedArrayView((2,), (-1,), {}, jnp.ones(2)).check_valid(),
        ValueError,
        "exactly once",
    ),
    "view name": Row(
        lambda: NamedArrayView((2,), (), {0: 0}, jnp.ones(2)).check_valid(),
        ValueError,
        "name 0 is an integer",
    ),
    "view leaf": Row(
        lambda: NamedArrayView((2,), (0,), {}, "leaf").check_valid(),
        ValueError,
        "must be an array.*str",
    ),
    "abstract base": Row(lambda: nx.NamedArrayBase(), TypeError, "abstract"),
    "broadcast named": Row(
        lambda: x().broadcast_to((), {"batch": 4}),
        ValueError,
        "size 2 and cannot become 4",
        lambda: x()[{"batch": 0}].broadcast_to((), {"embed": 3, "batch": 4}),
    ),
    "broadcast rank": Row(
        lambda: half().broadcast_to((), {}), ValueError, r"\(\) has fewer axes.*\(2,\)"
    ),
    "broadcast positional": Row(
        lambda: half().broadcast_to((3,), {}), ValueError, r"\(2,\) cannot become \(3,\)"
    ),
    "broadcast int": Row(lambda: half().broadcast_to(3), TypeError, "not iterable"),
    # operators and lifting
    "add sizes": Row(
        lambda: x() + nx.ones({"batch": 5}),
        ValueError,
        r"add: axis 'batch' has size 2 in args\[0\] and size 5 in args\[1\].*untag\('batch'\)",
        lambda: x() + nx.ones({"batch": 5}).untag("batch").tag("batch_2"),
    ),
    "equal sizes": Row(lambda: x() == nx.ones({"batch": 5}), ValueError, "'batch' has size 2"),
    "divmod sizes": Row(
        lambda: divmod(x(), nx.ones({"batch": 5})), ValueError, "'batch' has size 2"
    ),
    "nmap sizes": Row(
        lambda: nx.nmap(jnp.add)(x(), [nx.ones({"embed": 5})]),
        ValueError,
        r"nmap\(add\).*size 5 in args\[1\]\[0\]",
    ),
    "nmap kwargs": Row(
        lambda: nx.nmap(lambda p, q: p)(x(), q={"k": nx.ones({"embed": 5})}),
        ValueError,
        r"kwargs\['q'\]\['k'\]",
    ),
    "nmap named output": Row(
        lambda: nx.nmap(lambda v: nx.wrap(v))(half()),
        TypeError,
        r"must return plain arrays.*output is a named array",
        lambda: nx.nmap(lambda v: nx.wrap(v).unwrap())(half()),
    ),
    "nmap of nmap": Row(
        lambda: nx.nmap(nx.nmap(jnp.sin))(half()), TypeError, "must return plain arrays"
    ),
    "nmap output": Row(
        lambda: nx.nmap(lambda v: {"k": "text"})(half()), TypeError, r"output\['k'\] is 'text'"
    ),
    "order text": Row(
        lambda: x() < "text", TypeError, r"lt: unsupported operands \(NamedArray, str\)"
    ),
    "add list": Row(
        lambda: x() + [1],
        TypeError,
        r"add: unsupported operands \(NamedArray, list\)",
        lambda: x() + jnp.asarray([1]),
    ),
    "add none": Row(
        lambda: None + x(), TypeError, r"add: unsupported operands \(NoneType, NamedArray\)"
    ),
    "divmod text": Row(
        lambda: divmod(x(), "text"), TypeError, r"divmod: unsupported operands \(NamedArray, str\)"
    ),
    "mask text": Row(
        lambda: nx.softmax(x(), "batch", where="text"),
        TypeError,
        "softmax: every operand must be.*'text' of type str",
        lambda: nx.softmax(x(), "batch", where=jnp.asarray(True)),
    ),
    "odd sharding": Row(
        lambda: nx.sharding_of(NamedArray(collections.OrderedDict(a=2), OddLeaf())),
        TypeError,
        "only a NamedSharding.*'odd'",
        lambda: nx.sharding_of(
            jax.device_put(
                x(),
                jax.sharding.NamedSharding(
                    jax.make_mesh((1,), ("d",)), jax.sharding.PartitionSpec()
                ),
            )
        ),
    ),
    "jnp function": Row(lambda: jnp.sin(x()), TypeError, "NamedArray"),
    "numpy ufunc": Row(lambda: np.add(x(), 1), TypeError, "does not support ufuncs"),
    "matmul rank": Row(lambda: x() @ x(), ValueError, "at least 1|ndim|rank"),
    "bool": Row(
        lambda: bool(x()),
        ValueError,
        r"bool\(array\).*\{embed:3, batch:2\}",
        lambda: bool(x().sum(("embed", "batch"))),
    ),
    "int": Row(
        lambda: int(half()), ValueError, r"int\(array\)", lambda: int(half()[{"embed": 0}][0])
    ),
    "float": Row(
        lambda: float(half()),
        ValueError,
        r"float\(array\)",
        lambda: float(half().sum().sum("embed")),
    ),
    "complex": Row(lambda: complex(half()), ValueError, r"complex\(array\)"),
    "index": Row(lambda: range(10)[half()], ValueError, r"operator.index\(array\)"),
    "iterate": Row(
        lambda: list(x()),
        ValueError,
        "first positional axis.*unstack",
        lambda: nx.unstack(x(), "batch"),
    ),
    "hash": Row(lambda: hash(x()), TypeError, "unhashable"),
    "frozen": Row(
        lambda: setattr(x(), "data_array", 1), dataclasses.FrozenInstanceError, "data_array"
    ),
    # axes of methods
    "sum unknown": Row(lambda: x().sum("bach"), ValueError, "'bach'.*Did you mean 'batch'"),
    "sum mixed": Row(
        lambda: half().sum(("embed", 0)),
        ValueError,
        "mixes names and positions",
        lambda: half().sum("embed").sum(0),
    ),
    "sum range": Row(lambda: half().sum(1), ValueError, r"axis=1 is out of range.*\(2,\)"),
    "sum twice": Row(lambda: half().sum((0, -1)), ValueError, "twice"),
    "where rank": Row(
        lambda: x().sum(where=jnp.ones(3, bool)),
        ValueError,
        "more positional axes",
        lambda: x().sum("embed", where=nx.wrap(jnp.ones(3, bool), "embed")),
    ),
    "argmax two": Row(
        lambda: x().argmax(("embed", "batch")),
        ValueError,
        "one axis is needed",
        lambda: x().merge_axes(("embed", "batch"), "both").argmax("both"),
    ),
    "named initial": Row(
        lambda: x().sum("batch", initial=nx.ones({"embed": 3})),
        ValueError,
        "sum with a named initial: axis='batch' is a name",
    ),
    "take name": Row(
        lambda: half().take(0, axis="embd"),
        ValueError,
        "takes positions. Did you mean 'embed'",
        lambda: half().untag_prefix("embed").take(0, axis=0),
    ),
    "swapaxes name": Row(
        lambda: half().swapaxes("embed", 0),
        ValueError,
        "'embed' is a name",
        lambda: half().untag_prefix("embed").swapaxes(0, 1),
    ),
    "function position": Row(
        lambda: nx.sum(x(), 0), ValueError, "axis=0 is a position", lambda: half().sum(0)
    ),
    "function raw": Row(
        lambda: nx.sum(jnp.ones(2), "a"),
        TypeError,
        "a named array is needed",
        lambda: nx.sum(nx.wrap(jnp.ones(2)).tag("a"), "a"),
    ),
    "one axis": Row(
        lambda: nx.cumsum(x(), ("embed", "batch")),
        ValueError,
        "one axis is needed",
        lambda: nx.cumsum(nx.merge_axes(x(), ("embed", "batch"), "both"), "both"),
    ),
    "no axis": Row(
        lambda: nx.sort(x(), None),
        ValueError,
        "axis=None is no name",
        lambda: nx.sort(x(), "batch"),
    ),
    # indexing
    "get range": Row(
        lambda: x()[{"batch": 2}],
        IndexError,
        r"index 2 is out of range for axis 'batch' of size 2",
        lambda: x().at[{"batch": 2}].get(mode="clip"),
    ),
    "get array range": Row(lambda: x()[{"batch": [0, -3]}], IndexError, "index -3 is out of range"),
    "get position range": Row(lambda: half()[5], IndexError, "index 5 is out of range for axis 0"),
    "set range": Row(
        lambda: x().at[{"batch": 2}].set(0),
        IndexError,
        "index 2",
        lambda: x().at[{"batch": 2}].set(0, mode="drop"),
    ),
    "too many": Row(
        lambda: half()[0, 0], IndexError, "2 for 1 positional axes", lambda: half()[{"embed": 0}][0]
    ),
    "two ellipses": Row(lambda: half()[..., ...], IndexError, "single ellipsis"),
    "dict in tuple": Row(
        lambda: half()[{"embed": 0}, 0],
        IndexError,
        "cannot be mixed",
        lambda: half()[{"embed": 0}][0],
    ),
    "index float": Row(lambda: half()[1.5], TypeError, "1.5 of type float"),
    "index text": Row(lambda: half()["batch"], TypeError, "'batch' of type str"),
    "name float": Row(lambda: x()[{"batch": 1.5}], TypeError, "1.5 of type float"),
    "name tuple": Row(
        lambda: x()[{"batch": (0, 1)}], TypeError, "of type tuple", lambda: x()[{"batch": [0, 1]}]
    ),
    "name bool": Row(lambda: x()[{"batch": True}], TypeError, "True of type bool"),
    "name float array": Row(
        lambda: x()[{"batch": jnp.ones(2)}],
        TypeError,
        "integer dtype; it has float32",
        lambda: x()[{"batch": jnp.ones(2).astype(int)}],
    ),
    "name unknown": Row(lambda: x()[{"bach": 0}], ValueError, "Did you mean 'batch'"),
    "name none": Row(lambda: x()[{"batch": None}], ValueError, "'batch' is there"),
    "name clash": Row(
        lambda: x()[{"batch": nx.arange("embed", 3) * 0, "embed": slice(1)}],
        ValueError,
        "axis 'embed', which the indexer also slices",
        lambda: x()[{"embed": slice(1)}][{"batch": nx.arange("embed", 1) * 0}],
    ),
    "mask shape": Row(
        lambda: half()[np.ones(3, bool)],
        IndexError,
        r"mask.shape=\(3,\).*\(2,\)",
        lambda: half()[np.ones(2, bool)],
    ),
    "mask rank": Row(lambda: x()[{"batch": np.ones((2, 2), bool)}], IndexError, "one axis"),
    "mask named": Row(
        lambda: x()[{"batch": nx.ones({"batch": 2}, bool)}],
        IndexError,
        r"named boolean mask.*where=.*compress",
        lambda: nx.compress(nx.ones({"batch": 2}, bool), x(), "batch", size=2),
    ),
    "mask traced": Row(
        lambda: jax.jit(lambda m: half()[m])(jnp.ones(2, bool)),
        IndexError,
        "traced boolean mask",
        lambda: jax.jit(lambda m: nx.where(nx.wrap(m), half(), 0.0))(jnp.ones(2, bool)),
    ),
    "mask scalar": Row(lambda: half()[True], IndexError, "scalar boolean mask"),
    "slice traced": Row(
        lambda: jax.jit(lambda i: half()[i:])(1), jax.errors.ConcretizationTypeError, "concrete"
    ),
    "get option": Row(lambda: half().at[0].get(clip=True), TypeError, "unexpected keyword 'clip'"),
    "set option": Row(
        lambda: half().at[0].set(1, fill_value=0), TypeError, "unexpected keyword 'fill_value'"
    ),
    "value shape": Row(
        lambda: x().at[{"batch": 0}].set(jnp.ones(3)),
        ValueError,
        r"positional shape \(3,\)",
        lambda: x().at[{"batch": 0}].set(nx.wrap(jnp.ones(3), "embed")),
    ),
    "value name": Row(
        lambda: x().at[{"batch": 0}].set(nx.ones({"batch": 2})),
        ValueError,
        r"\['batch'\], which the indexer removes",
        lambda: x().at[{"batch": 0}].set(nx.ones({"batch": 2})[{"batch": 0}]),
    ),
    "value size": Row(
        lambda: x().at[{"batch": slice(1)}].set(nx.ones({"batch": 2})),
        ValueError,
        "size 2 in the value and 1 in the indexed region",
    ),
    # making
    "zeros name": Row(lambda: nx.zeros({0: 2}), ValueError, "name 0 is an integer"),
    "zeros size": Row(
        lambda: nx.zeros({"a": 2.5}), ValueError, "size of axis 'a' must be an integer; it is 2.5"
    ),
    "zeros negative": Row(lambda: nx.zeros({"a": -1}), ValueError, "negative: -1"),
    "zeros pairs": Row(
        lambda: nx.zeros([("a", 2)]), TypeError, "must be a mapping", lambda: nx.zeros({"a": 2})
    ),
    "split names": Row(
        lambda: nx.random_split(KEY, {"a": 2, 1.5: 2}),
        ValueError,
        "cannot be sorted",
        lambda: nx.random_split(KEY, [("a", 2), (1.5, 2)]),
    ),
    "split empty": Row(lambda: nx.random_split(KEY, []), ValueError, r"non-empty sequence.*\[\]"),
    "split overlap": Row(
        lambda: nx.random_split(nx.random_split(KEY, {"a": 2}), {"a": 3}),
        ValueError,
        r"\['a'\] already",
        lambda: nx.random_split(nx.random_split(KEY, {"a": 2}), {"b": 3}),
    ),
    "sample parameter": Row(
        lambda: nx.random_uniform(KEY, {"a": 2}, minval=nx.zeros({"b": 2})),
        ValueError,
        "names of the result only.*'b': 2",
    ),
    "mask axes": Row(lambda: nx.causal_mask({"query": 2}), ValueError, "needs two axes"),
    # joining
    "concatenate none": Row(lambda: nx.concatenate([], "a"), ValueError, "sequence is empty"),
    "concatenate axis": Row(
        lambda: nx.concatenate([x()], "bach"),
        ValueError,
        "Did you mean 'batch'.*stack",
        lambda: nx.stack([x()], "bach"),
    ),
    "concatenate sizes": Row(
        lambda: nx.concatenate([x(), nx.ones({"embed": 4, "batch": 1})], "batch"),
        ValueError,
        "'embed' has sizes 3 and 4",
    ),
    "concatenate ranks": Row(
        lambda: nx.concatenate([x(), half()], "embed"),
        ValueError,
        r"\[\(\), \(2,\)\]",
        lambda: nx.concatenate([x(), half().tag("batch")], "embed"),
    ),
    "concatenate raw": Row(
        lambda: nx.concatenate([jnp.ones(2)], "a"),
        TypeError,
        r"arrays\[0\] is no named array",
        lambda: nx.concatenate([nx.wrap(jnp.ones(2), "a")], "a"),
    ),
    "stack taken": Row(
        lambda: nx.stack([x()], "batch"),
        ValueError,
        "'batch' already",
        lambda: nx.concatenate([x()], "batch"),
    ),
    "stack integer": Row(lambda: nx.stack([x()], 0), ValueError, "name 0 is an integer"),
    "unstack": Row(lambda: nx.unstack(x(), "bach"), KeyError, "Did you mean 'batch'"),
    # loops
    "scan raw": Row(
        lambda: nx.scan(lambda c, v: (c, v), "a", 0, {"k": jnp.ones(2)}),
        ValueError,
        r"xs\['k'\] is Array",
        lambda: nx.scan(lambda c, v: (c, v), "a", 0, {"k": nx.wrap(jnp.ones(2), "a")}),
    ),
    "scan axis": Row(
        lambda: nx.scan(lambda c, v: (c, v), "bach", 0, x()), ValueError, "Did you mean 'batch'"
    ),
    "scan output": Row(
        lambda: nx.scan(lambda c, v: (c, nx.expand(v, "batch")), "batch", 0, x()),
        ValueError,
        "has the axis 'batch' itself",
        lambda: nx.scan(lambda c, v: (c, nx.expand(v, "other")), "batch", 0, x()),
    ),
    "vmap_over none": Row(
        lambda: nx.vmap_over("a")(lambda v: v)(x()),
        ValueError,
        "no argument has this axis.*'embed': 3",
    ),
    "vmap_over sizes": Row(
        lambda: nx.vmap_over("batch")(lambda p, q: p)(x(), nx.ones({"batch": 5})),
        ValueError,
        "'batch' has size 2",
    ),
    # rearrangement
    "rename unknown": Row(
        lambda: nx.rename(x(), {"bach": "b"}), ValueError, "Did you mean 'batch'"
    ),
    "rename taken": Row(
        lambda: nx.rename(x(), {"batch": "embed"}),
        ValueError,
        "'embed' is taken",
        lambda: nx.rename(x(), {"batch": "other"}),
    ),
    "rename integer": Row(lambda: nx.rename(x(), {"batch": 1}), ValueError, "name 1 is an integer"),
    "split_axis sizes": Row(
        lambda: nx.split_axis(x(), "embed", {"p": 2, "q": 2}),
        ValueError,
        "must multiply to 3.*'p': 2, 'q': 2",
    ),
    "merge none": Row(
        lambda: nx.merge_axes(x(), (), "a"),
        ValueError,
        "axes is empty",
        lambda: nx.expand(x(), "a"),
    ),
    "expand taken": Row(
        lambda: nx.expand(x(), "batch"),
        ValueError,
        "'batch' is taken",
        lambda: nx.expand(x(), "other"),
    ),
    "squeeze size": Row(
        lambda: nx.squeeze(x(), "batch"),
        ValueError,
        "'batch' has size 2",
        lambda: x()[{"batch": 0}],
    ),
    "pattern arrow": Row(
        lambda: nx.rearrange(x(), "embed batch"),
        ValueError,
        "one '->'",
        lambda: nx.rearrange(x(), "embed batch -> batch embed"),
    ),
    "pattern text": Row(
        lambda: nx.rearrange(x(), "embed (batch -> embed"),
        ValueError,
        r"cannot read '\(batch'",
        lambda: nx.rearrange(x(), "embed batch -> (token: batch embed)"),
    ),
    "pattern dots": Row(
        lambda: nx.rearrange(x(), "embed ... -> embed"),
        ValueError,
        "on both sides",
        lambda: nx.rearrange(x(), "embed ... -> embed ..."),
    ),
    "pattern name": Row(
        lambda: nx.rearrange(x(), "embd batch -> batch embd"), ValueError, "Did you mean 'embed'"
    ),
    "pattern missing": Row(
        lambda: nx.rearrange(x(), "embed -> embed"),
        ValueError,
        r"\['batch'\] are missing",
        lambda: nx.rearrange(x(), "embed ... -> embed ..."),
    ),
    "pattern twice": Row(
        lambda: nx.rearrange(x(), "embed batch -> embed embed batch"),
        ValueError,
        r"\['embed'\] are twice",
    ),
    "pattern lost": Row(
        lambda: nx.rearrange(x(), "embed batch -> embed new"),
        ValueError,
        r"left: \['batch'\], only on the right: \['new'\]",
        lambda: nx.expand(x().sum("batch"), "new"),
    ),
    "pattern sizes": Row(
        lambda: nx.rearrange(x(), "embed batch -> batch embed", row=2),
        ValueError,
        r"\['row'\] belong to no group",
    ),
    # products
    "dot none": Row(lambda: nx.dot(axis="a"), ValueError, "at least one array"),
    "dot axis": Row(
        lambda: nx.dot(x(), nx.ones({"embed": 3}), axis="batch"),
        ValueError,
        "it is in 1 of",
        lambda: nx.sum(x(), "batch"),
    ),
    "dot sizes": Row(
        lambda: nx.dot(x(), nx.ones({"embed": 4}), axis="embed"), ValueError, "'embed' has size 3"
    ),
    "einsum arrow": Row(
        lambda: nx.einsum("embed", x()),
        ValueError,
        "must contain '->'",
        lambda: nx.einsum("embed batch -> embed", x()),
    ),
    "einsum count": Row(
        lambda: nx.einsum("embed, batch -> embed", x()), ValueError, "2 arrays, 1 were given"
    ),
    "einsum input": Row(
        lambda: nx.einsum("embed -> embed", x()),
        ValueError,
        r"\['embed'\]; it has \['embed', 'batch'\]",
        lambda: nx.einsum("-> embed", x()),
    ),
    "einsum output": Row(lambda: nx.einsum("-> bach", x()), ValueError, "Did you mean 'batch'"),
    # selection, order, slices
    "where raw": Row(
        lambda: nx.where(True, 1, 2),
        TypeError,
        "must be a named array",
        lambda: jnp.where(True, 1, 2),
    ),
    "where text": Row(lambda: nx.where(x() > 0, x(), "text"), TypeError, "str"),
    "top_k": Row(lambda: nx.top_k(x(), 4, "embed"), ValueError, "k=4 must be from 0 to 3"),
    "one_hot": Row(lambda: nx.one_hot(x(), "batch", 3), ValueError, "'batch' is taken"),
    "split sizes": Row(
        lambda: nx.split(x(), "embed", [1, 1]), ValueError, r"add up to 3.*\[1, 1\]"
    ),
    "split parts": Row(lambda: nx.split(x(), "embed", 2), ValueError, "add up to 3"),
    "dynamic names": Row(
        lambda: nx.dynamic_slice(x(), {"embed": 0}, {"batch": 1}), ValueError, "same names"
    ),
    "dynamic size": Row(
        lambda: nx.dynamic_slice(x(), {"embed": 0}, {"embed": 4}), ValueError, "slice of 4.*size 3"
    ),
    "start shape": Row(
        lambda: nx.dynamic_slice(x(), {"embed": jnp.zeros(2, int)}, {"embed": 1}),
        ValueError,
        r"shape is \(2,\)",
        lambda: nx.dynamic_slice(x(), {"embed": nx.wrap(jnp.zeros(2, int), "batch")}, {"embed": 1}),
    ),
    "start positional": Row(
        lambda: nx.dynamic_slice(x(), {"embed": nx.wrap([0, 1])}, {"embed": 1}),
        ValueError,
        r"positional shape \(2,\)",
    ),
    "start dtype": Row(
        lambda: nx.dynamic_slice(x(), {"embed": 0.5}, {"embed": 1}),
        TypeError,
        "must be an integer; it is 0.5",
    ),
    "update name": Row(
        lambda: nx.dynamic_update_slice(x(), nx.ones({"other": 1}), {"embed": 0}),
        ValueError,
        "'other' of the update has size 1",
    ),
    "update size": Row(
        lambda: nx.dynamic_update_slice(x(), nx.ones({"embed": 4}), {"embed": 0}),
        ValueError,
        "'embed' of the update has size 4",
    ),
    # exchange
    "xarray positional": Row(lambda: nx.to_xarray(half()), ValueError, r"positional_shape=\(2,\)"),
    # shapes
    "var": Row(lambda: chk.var(3), TypeError, "must be a string; it is 3"),
    "var member": Row(
        lambda: (*chk.var("a")["b"],),
        TypeError,
        r"\('a', 'b'\): a member of a group",
        lambda: (*chk.var("a"),),
    ),
    "var other expansion": Row(
        lambda: chk.var("a")[next(iter(chk.var("b")))], KeyError, "b", lambda: {**chk.var("a")}
    ),
    "result key": Row(lambda: chk.check_structure(1, chk.ANY)[3], KeyError, "3"),
    "quantile mask": Row(
        lambda: half().median(where=np.ones((3, 2), bool)),
        ValueError,
        r"quantile: where= has more positional axes.*\(3, 2\) and \(2,\)",
        lambda: half().median(where=nx.wrap(np.ones((3, 2), bool)).tag_prefix("embed")),
    ),
    "median mixed": Row(
        lambda: half().median(("embed", 0)), ValueError, "mixes names and positions"
    ),
    "median range": Row(lambda: half().median(1), ValueError, r"axis=1 is out of range.*\(2,\)"),
    "logsumexp unknown": Row(
        lambda: x().logsumexp("bach"), ValueError, "'bach'.*Did you mean 'batch'"
    ),
    "var key": Row(lambda: chk.var("a")[1.5], KeyError, "1.5"),
    "vars_for_axes": Row(
        lambda: chk.vars_for_axes("v", "ab"),
        TypeError,
        "the string 'ab'",
        lambda: chk.vars_for_axes("v", ["ab"]),
    ),
    "spec dim": Row(
        lambda: chk.ArraySpec((None,)),
        TypeError,
        r"shape\[0\] must be an integer.*None",
        lambda: chk.ArraySpec((chk.var("n"),)),
    ),
    "spec named dim": Row(
        lambda: chk.ArraySpec(named_shape={"a": "b"}), TypeError, r"named_shape\['a'\].*'b'"
    ),
    "into_pytree": Row(
        lambda: chk.ArraySpec((chk.var("n"),), np.float32).into_pytree(),
        ValueError,
        r"\{n\}",
        lambda: chk.full_substitute_dimension_variables(
            chk.ArraySpec((chk.var("n"),), np.float32), chk.DimensionVariableSubstitution({"n": 2})
        ).into_pytree(),
    ),
    "into_pytree dtype": Row(
        lambda: chk.ArraySpec((2,), np.floating).into_pytree(), TypeError, "floating"
    ),
    "known_vars": Row(
        lambda: chk.check_structure(1, chk.ANY, known_vars={"n": "many"}),
        TypeError,
        r"known_vars\['n'\].*'many'",
        lambda: chk.check_structure(1, chk.ANY, known_vars={"n": 3}),
    ),
    "result item": Row(
        lambda: chk.check_structure(1, chk.ANY)["n"], KeyError, "no dimension variable is named 'n'"
    ),
    "result attribute": Row(
        lambda: chk.check_structure(np.ones(2), chk.ArraySpec((chk.var("batch"),))).bach,
        AttributeError,
        "'bach'.*Did you mean 'batch'",
    ),
    "substitute unknown": Row(
        lambda: chk.full_substitute_dimension_variables(
            chk.ArraySpec((chk.var("n"),)), chk.DimensionVariableSubstitution()
        ),
        KeyError,
        "n",
    ),
    "substitute twice": Row(
        lambda: chk.full_substitute_dimension_variables(
            [chk.ArraySpec(named_shape={"a": 1, **chk.var("v")})],
            chk.DimensionVariableSubstitution(mapping_variables={"v": {"a": 2}}),
        ),
        ValueError,
        r"root\[0\], the axis 'a'",
        lambda: chk.full_substitute_dimension_variables(
            [chk.ArraySpec(named_shape={"b": 1, **chk.var("v")})],
            chk.DimensionVariableSubstitution(mapping_variables={"v": {"a": 2}}),
        ),
    ),
    # signatures
    "signature arrow": Row(
        lambda: nx.checked("x: {a}"), ValueError, "needs '->'", lambda: nx.checked("x: {a} -> *")
    ),
    "signature argument": Row(
        lambda: nx.checked("{a} -> *"),
        ValueError,
        "must be an argument's name",
        lambda: nx.checked("x: {a} -> *"),
    ),
    "signature shape": Row(
        lambda: nx.checked("x: a -> *"),
        ValueError,
        "cannot read the shape 'a'",
        lambda: nx.checked("x: {a} -> *"),
    ),
    "signature dim": Row(
        lambda: nx.checked("x: {a:1.5} -> *"),
        ValueError,
        "'1.5' is neither",
        lambda: nx.checked("x: {a:15, b:size} -> *"),
    ),
    "signature axis": Row(
        lambda: nx.checked("x: {a, a} -> *"), ValueError, "'a' in .* not there twice"
    ),
    "signature dtype": Row(
        lambda: nx.checked("x: flot {a} -> *"), ValueError, "'flot'.*Did you mean 'float'"
    ),
    "signature result": Row(
        lambda: nx.checked("x: {a} -> "),
        ValueError,
        "has no result",
        lambda: nx.checked("x: {a} -> *"),
    ),
    "signature name": Row(
        lambda: nx.checked("y: {a} -> *")(lambda x: x), ValueError, "has no argument 'y'"
    ),
}


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_error_says_the_rule_and_the_values(row):
    with pytest.raises(row.error, match="(?s)" + row.match):
        row.call()
    row.repair()
