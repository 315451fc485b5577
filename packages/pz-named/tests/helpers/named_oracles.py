"""Oracles that NumPy does not have itself."""

import functools
import math
import warnings

import numpy as np


def quiet(function):
    """NumPy warns where it gives NaN for nothing, or -inf for log(0)."""

    @functools.wraps(function)
    def call(*args, **kwargs):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            return function(*args, **kwargs)

    return call


@quiet
def np_logsumexp(values, axis=None, keepdims=False, where=True):
    values = values.astype(np.float64)
    return np.log(np.exp(values).sum(axis, keepdims=keepdims, where=where))


def np_softmax(values, axis):
    weights = np.exp(values.astype(np.float64))
    return weights / weights.sum(axis, keepdims=True)


@quiet
def masked(name, oracle, arrays, axes):
    """A masked reduction, element by element through the reduction of what the mask keeps."""
    values, marks = np.broadcast_arrays(*arrays)
    if name in ("min", "max"):
        if values.dtype.kind == "f":
            extreme = np.inf if name == "min" else -np.inf
        else:
            info = np.iinfo(values.dtype)
            extreme = info.max if name == "min" else info.min
        return oracle(values, axes, where=marks, initial=extreme)
    if name == "count_nonzero":
        return np.sum((values != 0) & marks, axes)
    if name == "median":
        return masked_quantile(values, marks, 0.5, axes)
    return oracle(values, axes, where=marks)


def masked_quantile(values, marks, q, axes):
    rest = [i for i in range(values.ndim) if i not in axes]
    order = [*rest, *axes]
    shape = tuple(values.shape[i] for i in rest)
    count = math.prod(values.shape[i] for i in axes)
    rows = values.transpose(order).reshape((math.prod(shape), count))
    kept = marks.transpose(order).reshape(rows.shape)
    found = [
        np.quantile(row[k], q) if k.any() else np.nan for row, k in zip(rows, kept, strict=True)
    ]
    return np.array(found).reshape(shape)


def np_median(values, axes, keepdims=False):
    """`np.median`, which fails for several axes beside one of size 0; of nothing it is NaN."""
    result = masked_quantile(values, np.ones(values.shape, bool), 0.5, axes)
    return np.expand_dims(result, tuple(sorted(axes))) if keepdims else result
