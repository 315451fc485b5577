"""Every operation against NumPy after an explicit transpose: one table, one test.

Each row names an operation, how to call it for a drawn case, and the oracle, which computes on
canonical NumPy arrays (names sorted first, then positional axes).
"""

import dataclasses
import inspect
import math
from collections.abc import Callable

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from named_cases import aligned, build, canonical, cases, partner, random_values
from named_oracles import masked, masked_quantile, np_logsumexp, np_median, np_softmax, quiet

import pz_named as nx

FLOAT = (np.float32,)
INTEGERS = (np.int32, np.int8, np.uint8)
FLOATS = (np.float32, np.float16, jnp.bfloat16)
ORDERED = (*FLOATS, *INTEGERS)
NUMBERS = (*ORDERED, np.complex64)
ANYTHING = (*NUMBERS, np.bool_)
# The values are small integers, so only division, roots and exponentials round; 16-bit results
# round a few times, each by half of their epsilon (1e-3, 8e-3), relative to values of about 4.
TOLERANCE = {np.float16: 1e-2, jnp.bfloat16: 5e-2}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One row: `run(case)` gives our result and the oracle's values."""

    name: str
    run: Callable
    dtypes: tuple = NUMBERS

    def __repr__(self):
        return self.name


def one(case, filled=False):
    """One name of the case and its canonical axis; `filled` when it must have an element."""
    names = [name for name in case.names if case.sizes[name] or not filled]
    hypothesis.assume(names)
    name = case.rng.choice(names)
    return name, case.names.index(name)


def several(case):
    """Some names of the case, in random order, and their canonical axes."""
    names = case.rng.sample(case.names, case.rng.randrange(1, len(case.names) + 1))
    return tuple(names), tuple(case.names.index(name) for name in names)


def both_refuse(ours, oracle):
    """Where NumPy has no value for nothing, ours has the same error; there is nothing to compare."""
    for call in (ours, oracle):
        with pytest.raises(ValueError, match=r"zero-size|empty sequence"):
            call()
    return (), ()


def is_empty(case, axes):
    return 0 in [case.values.shape[axis] for axis in axes]


def compiled(function):
    """One program instead of one for each step, for what takes many steps."""
    static = {"axis", "keepdims"} & set(inspect.signature(function).parameters)
    return jax.jit(function, static_argnames=tuple(static))


def reduction(name, oracle, of=lambda function: function, **options):
    function = of(getattr(nx, name))
    oracle = quiet(oracle)

    def run(case):
        names, axes = several(case)
        style = case.rng.randrange(4)
        if name in ("min", "max") and style != 1 and is_empty(case, axes):
            return both_refuse(
                lambda: function(case.x, axis=names), lambda: oracle(case.values, axes)
            )
        if style == 0:
            result = function(case.x, axis=names, keepdims=True)
            return result, oracle(case.values, axes, keepdims=True)
        if style == 1:
            mask = partner(case, dtype=np.bool_)
            arrays, _ = aligned(case, mask)
            result = function(case.x, axis=names, where=mask.x)
            return result, masked(name, oracle, arrays, axes)
        if style == 2:
            return getattr(case.x, name)(axis=names), oracle(case.values, axes)
        return function(case.x, axis=names), oracle(case.values, axes)

    return Operation(name, run, **options)


def along(name, oracle, **options):
    def run(case):
        chosen, axis = one(case)
        return getattr(nx, name)(case.x, chosen), oracle(case.values, axis)

    return Operation(name, run, **options)


def arg(name, oracle):
    def run(case):
        names, axes = several(case)
        rest = [i for i in range(case.values.ndim) if i not in axes]
        flat = case.values.transpose([*rest, *axes])
        count = math.prod(flat.shape[len(rest) :])
        flat = flat.reshape((*flat.shape[: len(rest)], count))
        if count == 0:
            return both_refuse(lambda: getattr(nx, name)(case.x, names), lambda: oracle(flat, -1))
        return getattr(nx, name)(case.x, names), oracle(flat, -1)

    return Operation(name, run, ORDERED)


def binary(name, function, dtypes=NUMBERS, oracle=None):
    def run(case):
        other = partner(case, extra={"d": 2})
        arrays, _ = aligned(case, other)
        return function(case.x, other.x), (oracle or function)(*arrays)

    return Operation(name, run, dtypes)


def run_quantile(case):
    names, axes = several(case)
    q = case.rng.choice([0.0, 0.3, 0.5, 1.0])
    if case.rng.random() < 0.5:
        mask = partner(case, dtype=np.bool_)
        arrays, _ = aligned(case, mask)
        values, marks = np.broadcast_arrays(*arrays)
        return nx.quantile(case.x, q, names, where=mask.x), masked_quantile(values, marks, q, axes)
    everything = np.ones(case.values.shape, bool)
    return nx.quantile(case.x, q, names), masked_quantile(case.values, everything, q, axes)


def run_where(case):
    condition, other = partner(case, dtype=np.bool_), partner(case, extra={"d": 2})
    arrays, _ = aligned(condition, case, other)
    return nx.where(condition.x, case.x, other.x), np.where(*arrays)


def run_dot(case):
    name, _ = one(case)
    other = partner(case, extra={"d": 2, name: case.sizes[name]})
    (left, right), names = aligned(case, other)
    return nx.dot(case.x, other.x, axis=name), (left * right).sum(names.index(name))


def run_einsum(case):
    other, third = partner(case, extra={"d": 2}), partner(case)
    arrays, names = aligned(case, other, third)
    out = case.rng.sample(names, case.rng.randrange(len(names) + 1))
    product = math.prod(arrays[1:], start=arrays[0])
    gone = tuple(i for i, name in enumerate(names) if name not in out)
    equation = ", ".join(" ".join(c.names) for c in (case, other, third)) + " -> " + " ".join(out)
    return nx.einsum(equation, case.x, other.x, third.x), product.sum(gone)


def run_rename(case):
    name, axis = one(case)
    return nx.rename(case.x, {name: "z"}), np.moveaxis(case.values, axis, len(case.names) - 1)


def run_split_axis(case):
    name, axis = one(case)
    shape = case.values.shape
    values = case.values.reshape((*shape[:axis], shape[axis], 1, *shape[axis + 1 :]))
    values = np.moveaxis(values, (axis, axis + 1), (len(case.names) - 1, len(case.names)))
    return nx.split_axis(case.x, name, {"y": shape[axis], "z": 1}), values


def run_merge_axes(case):
    names, axes = several(case)
    count = len(case.names) - len(axes)
    rest = [i for i in range(len(case.names)) if i not in axes]
    order = [*rest, *axes, *range(len(case.names), case.values.ndim)]
    values = case.values.transpose(order)
    merged = math.prod(values.shape[count : len(case.names)])
    shape = (*values.shape[:count], merged, *case.positional)
    return nx.merge_axes(case.x, names, "z"), values.reshape(shape)


def run_rearrange(case):
    names, axes = several(case)
    rest = [n for n in case.names if n not in names]
    pattern = f"{' '.join(names)} ... -> (z: {' '.join(names)}) ..."
    expected = run_merge_axes_values(case, axes, len(rest))
    return nx.rearrange(case.x, pattern), expected


def run_merge_axes_values(case, axes, count):
    rest = [i for i in range(len(case.names)) if i not in axes]
    order = [*rest, *axes, *range(len(case.names), case.values.ndim)]
    values = case.values.transpose(order)
    merged = math.prod(values.shape[count : len(case.names)])
    return values.reshape((*values.shape[:count], merged, *case.positional))


def run_expand(case):
    shape = (*case.values.shape[: len(case.names)], 2, *case.positional)
    values = np.broadcast_to(np.expand_dims(case.values, len(case.names)), shape)
    return nx.expand(case.x, {"z": 2}), values


def run_squeeze(case):
    wide = nx.expand(case.x, "z")
    return nx.squeeze(wide, "z"), case.values


def run_take(case):
    name, _ = one(case, filled=True)
    size = case.sizes[name]
    index = partner(case, extra={"d": 2}, without=(name,), dtype=np.int32)
    index.values[...] = np.abs(index.values) % size
    first = (..., *(0 for _ in index.positional))
    index.values = (
        index.values[first]
        if index.values.size
        else np.zeros(index.values.shape[: len(index.names)], np.int32)
    )
    named = build(index.values, index.names, case.rng)
    names = sorted({*case.names, *index.names} - {name})
    grid = np.ix_(*(range({**index.sizes, **case.sizes}[n]) for n in names))
    spot = dict(zip(names, grid, strict=True))
    chosen = index.values[tuple(spot[n] for n in index.names)]
    picks = tuple(chosen if n == name else spot[n] for n in case.names)
    return nx.take(case.x, named, name), case.values[picks]


def run_take_along(case):
    name, axis = one(case, filled=True)
    order = np.argsort(case.values, axis=axis, kind="stable").astype(np.int32)
    rank = len(case.names)
    if case.positional:
        return nx.sort(case.x, name), np.sort(case.values, axis)
    indices = build(order, case.names, case.rng)
    assert rank == order.ndim
    return nx.take_along(case.x, indices, name), np.take_along_axis(case.values, order, axis)


def run_top_k(case):
    name, axis = one(case)
    k = case.rng.randrange(case.sizes[name] + 1)
    order = np.argsort(-case.values.astype(np.float32), axis=axis, kind="stable").take(
        range(k), axis
    )
    values, positions = nx.top_k(case.x, k, name)
    return (values, positions), (np.take_along_axis(case.values, order, axis), order)


def run_one_hot(case):
    values = (np.abs(case.values)[..., None] == np.arange(3)).astype(np.float32)
    return nx.one_hot(abs(case.x), "z", 3), np.moveaxis(values, -1, len(case.names))


def run_compress(case):
    name, axis = one(case)
    mask = random_values((case.sizes[name],), np.bool_, case.rng)
    size = int(mask.sum()) + 1
    kept = np.compress(mask, case.values, axis)
    widths = [(0, 0)] * kept.ndim
    widths[axis] = (0, 1)
    result = nx.compress(nx.wrap(mask, name), case.x, name, size=size, fill_value=0)
    return result, np.pad(kept, widths)


def run_roll(case):
    name, axis = one(case)
    shift = case.rng.randrange(-2, 3)
    return nx.roll(case.x, shift, name), np.roll(case.values, shift, axis)


def run_pad(case):
    name, axis = one(case)
    widths = [(0, 0)] * case.values.ndim
    widths[axis] = (1, 2)
    result = nx.pad(case.x, {name: (1, 2)}, constant_values=7)
    return result, np.pad(case.values, widths, constant_values=7)


def run_tile(case):
    name, axis = one(case)
    counts = [1] * case.values.ndim
    counts[axis] = 2
    return nx.tile(case.x, {name: 2}), np.tile(case.values, counts)


def run_repeat(case):
    name, axis = one(case)
    return nx.repeat(case.x, 2, name), np.repeat(case.values, 2, axis)


def run_split(case):
    name, axis = one(case)
    size = case.sizes[name]
    cut = case.rng.randrange(size + 1)
    parts = nx.split(case.x, name, [cut, size - cut])
    return tuple(parts), tuple(np.split(case.values, [cut], axis))


def run_slice_axis(case):
    name, axis = one(case)
    bounds = slice(case.rng.randrange(3), None, case.rng.choice([1, 2]))
    index = [slice(None)] * case.values.ndim
    index[axis] = bounds
    result = nx.slice_axis(case.x, name, bounds.start, bounds.stop, bounds.step)
    return result, case.values[tuple(index)]


def run_dynamic_slice(case):
    name, axis = one(case)
    size = case.sizes[name]
    length = case.rng.randrange(size + 1)
    start = case.rng.randrange(size - length + 1)
    index = [slice(None)] * case.values.ndim
    index[axis] = slice(start, start + length)
    return nx.dynamic_slice(case.x, {name: start}, {name: length}), case.values[tuple(index)]


def run_dynamic_update_slice(case):
    name, axis = one(case)
    size = case.sizes[name]
    length = case.rng.randrange(size + 1)
    start = case.rng.randrange(size - length + 1)
    index = [slice(None)] * case.values.ndim
    index[axis] = slice(start, start + length)
    values = case.values.copy()
    values[tuple(index)] += 1
    update = nx.slice_axis(case.x, name, start, start + length) + 1
    return nx.dynamic_update_slice(case.x, update, {name: start}), values


def run_concatenate(case):
    name, axis = one(case)
    flipped = build(np.flip(case.values, axis), case.names, case.rng, case.dtype)
    return (
        nx.concatenate([case.x, flipped], name),
        np.concatenate([case.values, np.flip(case.values, axis)], axis),
    )


def run_stack(case):
    other = build(case.values + 1, case.names, case.rng, case.dtype)
    return nx.stack([case.x, other], "z"), np.stack([case.values, case.values + 1], len(case.names))


def run_unstack(case):
    name, axis = one(case)
    return tuple(nx.unstack(case.x, name)), tuple(np.moveaxis(case.values, axis, 0))


def run_softmax(case):
    names, axes = several(case)
    return compiled(nx.softmax)(case.x, axis=names), np_softmax(case.values, axes)


def run_log_softmax(case):
    names, axes = several(case)
    return compiled(nx.log_softmax)(case.x, axis=names), np.log(np_softmax(case.values, axes))


@quiet
def run_standardize(case):
    names, axes = several(case)
    centred = case.values - case.values.mean(axes, keepdims=True)
    scale = np.sqrt(case.values.var(axes, keepdims=True) + 1e-5)
    return compiled(nx.standardize)(case.x, axis=names), centred / scale


def run_scan(case):
    name, axis = one(case)
    rest = [n for n in case.names if n != name]
    start = nx.sum(nx.slice_axis(case.x, name, 0, 0), name).astype(case.dtype)
    _, sums = nx.scan(lambda carry, v: (carry + v, carry + v), name, start, case.x)
    assert next(iter(canonical(sums)[1])) in (name, *rest)
    return sums, np.cumsum(case.values, axis, dtype=case.values.dtype)


def run_associative_scan(case):
    name, axis = one(case)
    result = nx.associative_scan(lambda p, q: p + q, name, case.x)
    return result, np.cumsum(case.values, axis, dtype=case.values.dtype)


def run_map(case):
    name, _ = one(case)
    return nx.map(lambda v: v * 2 + 1, name, case.x, batch_size=2), case.values * 2 + 1


def run_vmap_over(case):
    name, axis = one(case)
    rest = [n for n in case.names if n != name]
    total = nx.vmap_over(name)(lambda v: nx.sum(v, tuple(rest)))(case.x)
    return total, case.values.sum(tuple(i for i in range(len(case.names)) if i != axis))


def run_index(case):
    index, numpy_index = {}, [slice(None)] * case.values.ndim
    for axis, name in enumerate(case.names):
        kind = case.rng.choice(["keep", "integer", "slice", "reverse"])
        if kind == "integer":
            hypothesis.assume(case.sizes[name])
            numpy_index[axis] = case.rng.randrange(-case.sizes[name], case.sizes[name])
        elif kind != "keep":
            numpy_index[axis] = slice(1, None) if kind == "slice" else slice(None, None, -1)
        if kind != "keep":
            index[name] = numpy_index[axis]
    return case.x[index], case.values[tuple(numpy_index)]


def run_index_list(case):
    name, axis = one(case, filled=True)
    picks = [case.rng.randrange(case.sizes[name]) for _ in range(2)]
    values = np.moveaxis(case.values.take(picks, axis), axis, len(case.names) - 1)
    return case.x[{name: picks}], values


def run_index_mask(case):
    name, axis = one(case)
    mask = random_values((case.sizes[name],), np.bool_, case.rng)
    values = np.moveaxis(np.compress(mask, case.values, axis), axis, len(case.names) - 1)
    return case.x[{name: mask}], values


def run_update(case):
    name, axis = one(case, filled=True)
    place = case.rng.randrange(case.sizes[name])
    values = case.values.copy()
    index = [slice(None)] * values.ndim
    index[axis] = place
    values[tuple(index)] += 3
    return case.x.at[{name: place}].add(3), values


def run_cumulative_method(case):
    name, axis = one(case)
    return case.x.cumsum(axis=name), np.cumsum(case.values, axis, dtype=case.values.dtype)


# Each new shape compiles a program, so the default run draws few cases for each of the many rows.
EXAMPLES = 6 if hypothesis.settings().max_examples <= 25 else hypothesis.settings().max_examples

TABLE = [
    reduction("sum", np.sum),
    reduction("prod", np.prod, dtypes=(np.float32, *INTEGERS, np.complex64)),
    reduction("mean", np.mean),
    reduction("var", np.var),
    reduction("std", np.std),
    reduction("min", np.min, dtypes=ORDERED),
    reduction("max", np.max, dtypes=ORDERED),
    reduction("all", np.all, dtypes=ANYTHING),
    reduction("any", np.any, dtypes=ANYTHING),
    reduction("count_nonzero", np.count_nonzero, dtypes=ANYTHING),
    reduction("logsumexp", np_logsumexp, of=compiled, dtypes=FLOATS),
    Operation("quantile", run_quantile, (np.float32, *INTEGERS)),
    reduction("median", np_median, dtypes=ORDERED),
    arg("argmin", np.argmin),
    arg("argmax", np.argmax),
    along("cumsum", lambda v, axis: np.cumsum(v, axis, dtype=v.dtype)),
    along("cumprod", lambda v, axis: np.cumprod(v, axis, dtype=v.dtype)),
    along("sort", np.sort),
    along("argsort", lambda v, axis: np.argsort(v, axis, kind="stable")),
    along("flip", np.flip),
    binary("add", lambda p, q: p + q),
    binary("divide", lambda p, q: p / (q * q + 1)),
    binary("power", lambda p, q: (p * p + 1) ** (q * q), FLOAT),
    binary("less", lambda p, q: p < q, ORDERED),
    binary("equal", lambda p, q: p == q),
    binary("floordiv", lambda p, q: p // (q * q + 1), ORDERED),
    binary("bits", lambda p, q: (p & q) ^ (p | ~q), (*INTEGERS, np.bool_)),
    Operation("where", run_where),
    Operation("dot", run_dot, (*FLOATS, np.complex64)),
    Operation("einsum", run_einsum, (np.float32, np.complex64)),
    Operation("rename", run_rename),
    Operation("split_axis", run_split_axis),
    Operation("merge_axes", run_merge_axes),
    Operation("rearrange", run_rearrange),
    Operation("expand", run_expand),
    Operation("squeeze", run_squeeze),
    Operation("take", run_take),
    Operation("take_along", run_take_along, ORDERED),
    Operation("top_k", run_top_k, ORDERED),
    Operation("one_hot", run_one_hot, INTEGERS),
    Operation("compress", run_compress),
    Operation("roll", run_roll),
    Operation("pad", run_pad),
    Operation("tile", run_tile),
    Operation("repeat", run_repeat),
    Operation("split", run_split),
    Operation("slice_axis", run_slice_axis),
    Operation("dynamic_slice", run_dynamic_slice),
    Operation("dynamic_update_slice", run_dynamic_update_slice),
    Operation("concatenate", run_concatenate),
    Operation("stack", run_stack),
    Operation("unstack", run_unstack),
    Operation("softmax", run_softmax, FLOATS),
    Operation("log_softmax", run_log_softmax, FLOATS),
    Operation("standardize", run_standardize, FLOATS),
    Operation("scan", run_scan),
    Operation("associative_scan", run_associative_scan),
    Operation("map", run_map),
    Operation("vmap_over", run_vmap_over),
    Operation("index", run_index),
    Operation("index by list", run_index_list),
    Operation("index by mask", run_index_mask),
    Operation("update", run_update),
    Operation("cumsum method", run_cumulative_method),
]


def check(result, expected, dtype):
    values, _ = canonical(result)
    assert values.shape == np.shape(expected)
    if jnp.issubdtype(dtype, jnp.inexact) and jnp.issubdtype(values.dtype, jnp.inexact):
        assert values.dtype in (dtype, np.real(np.zeros(0, dtype)).dtype)
    tolerance = TOLERANCE.get(dtype.type, 1e-5)
    np.testing.assert_allclose(
        np.asarray(values, np.complex128),
        np.asarray(expected, np.complex128),
        rtol=tolerance,
        atol=tolerance,
    )


@pytest.mark.parametrize("operation", TABLE, ids=repr)
def test_operation_agrees_with_numpy(operation):
    @hypothesis.given(cases(operation.dtypes))
    @hypothesis.settings(max_examples=EXAMPLES)
    def agrees(case):
        result, expected = operation.run(case)
        results = result if isinstance(result, tuple) else (result,)
        oracles = expected if isinstance(expected, tuple) else (expected,)
        assert len(results) == len(oracles)
        for one_result, one_expected in zip(results, oracles, strict=True):
            check(one_result, one_expected, case.dtype)

    agrees()


def test_the_table_covers_every_operation():
    rows = {row.name for row in TABLE}
    elsewhere = {
        "AxisName",
        "NamedArray",
        "NamedArrayBase",
        "NamedArrayView",
        "TmpPosAxisMarker",
        "is_namedarray",
        "wrap",
        "nmap",
        "order_like",  # test_arrays, test_lifting
        "arange",
        "full",
        "full_like",
        "linspace",
        "ones",
        "ones_like",
        "zeros",
        "zeros_like",
        "band_mask",
        "causal_mask",  # test_creation
        "from_dlpack",
        "from_xarray",
        "sharding_of",
        "to_dlpack",
        "to_xarray",  # test_interop
    } | {name for name in nx.__all__ if name.startswith("random_")}  # test_sampling
    assert set(nx.__all__) - elsewhere - rows - {"checked"} == set()
