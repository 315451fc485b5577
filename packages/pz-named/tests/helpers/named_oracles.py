"""Oracles that NumPy does not have itself."""

import numpy as np


def np_logsumexp(values, axis=None, keepdims=False, where=True):
    values = values.astype(np.float64)
    return np.log(np.exp(values).sum(axis, keepdims=keepdims, where=where))


def np_softmax(values, axis):
    weights = np.exp(values.astype(np.float64))
    return weights / weights.sum(axis, keepdims=True)


def masked(name, oracle, arrays, axes):
    """A masked reduction, element by element through the reduction of what the mask keeps."""
    values, marks = np.broadcast_arrays(*arrays)
    if name in ("min", "max"):
        if values.dtype == np.float32:
            extreme = np.inf if name == "min" else -np.inf
        else:
            info = np.iinfo(values.dtype)
            extreme = info.max if name == "min" else info.min
        return oracle(values, axes, where=marks, initial=extreme)
    if name == "count_nonzero":
        return np.sum((values != 0) & marks, axes)
    if name == "median":
        return masked_quantile(values, marks, 0.5, axes)
    with np.errstate(all="ignore"):
        count = marks.sum(axes)
        if name in ("mean", "var", "std"):
            # NumPy warns where nothing counts; the result there is NaN.
            safe = np.broadcast_to(np.expand_dims(count, _sorted(axes)) == 0, marks.shape) | marks
            return np.where(count == 0, np.nan, oracle(values, axes, where=safe))
        return oracle(values, axes, where=marks)


def _sorted(axes):
    return tuple(sorted(axes))


def masked_quantile(values, marks, q, axes):
    rest = [i for i in range(values.ndim) if i not in axes]
    order = [*rest, *axes]
    shape = tuple(values.shape[i] for i in rest)
    rows = values.transpose(order).reshape((int(np.prod(shape)), -1))
    kept = marks.transpose(order).reshape(rows.shape)
    found = [
        np.quantile(row[k], q) if k.any() else np.nan for row, k in zip(rows, kept, strict=True)
    ]
    return np.array(found).reshape(shape)
