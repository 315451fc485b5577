"""Random named arrays together with the NumPy array they stand for.

The canonical order of an array is: names sorted, then positional axes. An oracle computes on
canonical NumPy arrays; `canonical` brings a named result there by reading its fields, so that it
shares no code with what is tested.
"""

import dataclasses
import random

import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

import pz_named as nx

NAMES = ("a", "b", "c")
HALVES = (np.float16, jnp.bfloat16)


@dataclasses.dataclass
class Case:
    """A named array, its canonical NumPy values and a source of further choices.

    Values of 16-bit floats are kept as float32, so that oracles do not round in between.
    """

    x: nx.NamedArrayBase
    values: np.ndarray
    names: tuple[str, ...]
    rng: random.Random

    @property
    def dtype(self):
        return self.x.dtype

    @property
    def sizes(self):
        return dict(zip(self.names, self.values.shape, strict=False))

    @property
    def positional(self):
        return self.values.shape[len(self.names) :]


def canonical(x):
    """The values of a named array in canonical order, and its sorted names."""
    data = np.asarray(x.data_array)
    if isinstance(x, nx.NamedArray):
        rank = data.ndim - len(x.named_axes)
        axis_of = {name: rank + i for i, name in enumerate(x.named_axes)}
        logical = range(rank)
        assert tuple(x.named_axes.values()) == data.shape[rank:]
    else:
        assert x.data_shape == data.shape
        axis_of, logical = x.data_axis_for_name, x.data_axis_for_logical_axis
    names = sorted(axis_of)
    return data.transpose([*(axis_of[name] for name in names), *logical]), tuple(names)


def build(values, names, rng, dtype=None):
    """A named array of random layout and representation, for canonical values."""
    values = values if dtype is None else values.astype(dtype)
    rank = values.ndim - len(names)
    axes = list(range(values.ndim))
    if rng.random() < 0.5:  # positional prefix, names in any order
        order = axes[: len(names)]
        rng.shuffle(order)
        data = jnp.asarray(values.transpose(axes[len(names) :] + order))
        flat = nx.NamedArray.wrap(data)
        markers = [nx.TmpPosAxisMarker() for _ in range(rank)]
        named = flat.tag(*markers, *(names[i] for i in order))
        return named.untag(*markers).with_positional_prefix() if rank else named
    rng.shuffle(axes)
    place = {axis: i for i, axis in enumerate(axes)}
    return nx.NamedArrayView(
        tuple(values.shape[axis] for axis in axes),
        tuple(place[len(names) + i] for i in range(rank)),
        {
            name: place[i]
            for name, i in sorted(
                zip(names, range(len(names)), strict=True), key=lambda pair: place[pair[1]]
            )
        },
        jnp.asarray(values.transpose(axes)),
    )


def random_values(shape, dtype, rng):
    source = np.random.default_rng(rng.randrange(2**31))
    if dtype == np.bool_:
        return source.integers(0, 2, shape).astype(bool)
    if dtype == np.complex64:
        return (source.integers(-4, 5, shape) + 1j * source.integers(-2, 3, shape)).astype(dtype)
    low = 0 if np.dtype(dtype).kind == "u" else -4
    return source.integers(low, 5, shape).astype(np.float32 if dtype in HALVES else dtype)


USUAL_SIZES = {"a": 2, "b": 3, "c": 2}


@st.composite
def cases(draw, dtypes=(np.float32, np.int32), least_size=0):
    """Draws names, their order and layout, sizes (zero and one included), a prefix and a dtype.

    Most sizes are the usual ones of their name: a shape that was seen before compiles nothing.
    """
    names = tuple(
        sorted(draw(st.lists(st.sampled_from(NAMES), min_size=1, max_size=3, unique=True)))
    )

    def size(usual):
        return draw(st.sampled_from([s for s in (usual, usual, usual, 1, 0) if s >= least_size]))

    shape = tuple(size(USUAL_SIZES[name]) for name in names)
    shape += tuple(size(usual) for usual in draw(st.sampled_from([(), (2,), (3, 2)])))
    rng = random.Random(draw(st.integers(0, 999)))
    dtype = draw(st.sampled_from(dtypes))
    values = random_values(shape, dtype, rng)
    return Case(build(values, names, rng, dtype), values, names, rng)


def partner(case, extra=(), without=(), dtype=None):
    """Another case that shares sizes by name: random subset of the names plus `extra` ones."""
    rng = case.rng
    kept = [n for n in case.names if n not in without and rng.random() < 0.7]
    sizes = {**{n: case.sizes[n] for n in kept}, **dict(extra)}
    names = tuple(sorted(sizes))
    rank = rng.randrange(len(case.positional) + 1)
    shape = tuple(sizes[n] for n in names) + case.positional[len(case.positional) - rank :]
    dtype = case.dtype.type if dtype is None else dtype
    values = random_values(shape, dtype, rng)
    return Case(build(values, names, rng, dtype), values, names, rng)


def aligned(*parts):
    """Canonical values of several cases, with size-1 axes where one lacks a name or position."""
    names = sorted(set().union(*(case.names for case in parts)))
    rank = max(len(case.positional) for case in parts)
    arrays = []
    for case in parts:
        shape = tuple(case.sizes.get(name, 1) for name in names)
        positional = (1,) * (rank - len(case.positional)) + case.positional
        arrays.append(case.values.reshape(shape + positional))
    return arrays, tuple(names)
