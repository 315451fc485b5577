"""The stages of `NamedEinsum`: check the specs, check the inputs, contract."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from pz_named import shapecheck as chk
from pz_named.named_axes import NamedArrayBase
from pz_nn._axes import near_misses
from pz_nn._contraction import contract_data
from pz_nn._dtypes import is_floating

Spec = tuple[str, ...] | dict[str, str]


def as_mapping(spec: Spec) -> dict[str, str]:
    """A spec as a dict from axis name to index name."""
    return spec if isinstance(spec, dict) else {name: name for name in spec}


def checked_specs(input_axes: Any, output_axes: Any) -> tuple[tuple[Spec, ...], Spec]:
    """Checks the specs of a `NamedEinsum` when it is made; lists become tuples.

    Raises:
        TypeError: If a spec is neither tuple, list nor dict.
        ValueError: If a tuple spec repeats a name, an output index repeats or occurs in no input, or there
            is no input.
    """
    if not isinstance(input_axes, tuple | list):
        raise TypeError(
            "NamedEinsum: input_axes must be a tuple with one spec for each input, not "
            f"{type(input_axes).__name__} {input_axes!r}. For one input write `(spec,)`."
        )
    inputs, output = tuple(map(_checked_spec, input_axes)), _checked_spec(output_axes)
    if not inputs:
        raise ValueError(
            "NamedEinsum: at least one input is needed, but input_axes is empty. Give one spec for each "
            "input."
        )
    known = {index for spec in inputs for index in as_mapping(spec).values()}
    outputs = list(as_mapping(output).values())
    unknown = [index for index in outputs if index not in known]
    if unknown:
        raise ValueError(
            f"NamedEinsum: every index of the output must occur in an input, but {unknown} do not: "
            f"input_axes={inputs}, output_axes={output}.{near_misses(unknown, known)} Use the index "
            "(not the axis name) of an input axis."
        )
    if len(set(outputs)) != len(outputs):
        raise ValueError(
            f"NamedEinsum: each index may stand in the output once, but got {output}. Remove the "
            "repetition."
        )
    return inputs, output


def _checked_spec(spec: Any) -> Spec:
    if isinstance(spec, dict):
        return spec
    if not isinstance(spec, tuple | list):
        raise TypeError(
            "NamedEinsum: a spec must be a tuple of axis names or a dict from axis name to index name, "
            f"not {type(spec).__name__} {spec!r}. For one axis write `({spec!r},)`."
        )
    if len(set(spec)) != len(spec):
        raise ValueError(
            f"NamedEinsum: a tuple spec may name an axis once, but got {tuple(spec)}. For a diagonal give "
            'two axes one index: {"row": "i", "column": "i"}.'
        )
    return tuple(spec)


def check_inputs(
    inputs: Any, specs: Sequence[dict[str, str]], output_spec: dict[str, str]
) -> tuple[Hashable, ...]:
    """Checks the inputs of a call.

    Returns:
        The batch axes, in the order of the first input.

    Raises:
        ValueError: If `inputs` is no tuple, has another length, or has a batch axis named like an output.
        StructureMismatchError: If an input does not match its spec.
    """
    if not isinstance(inputs, tuple) or len(inputs) != len(specs):
        got = (
            f"{type(inputs).__name__} of length {len(inputs)}"
            if isinstance(inputs, tuple | list)
            else type(inputs).__name__
        )
        raise ValueError(
            f"NamedEinsum: the input must be a tuple of {len(specs)} named arrays, one for each spec of "
            f"input_axes, but is a {got}. Call it as `layer((a, b))`."
        )
    if not _fit(inputs, specs):
        _raise_misfit(inputs, specs)
    batch_names = tuple(name for name in inputs[0].named_shape if name not in specs[0])
    clashing = [name for name in output_spec if name in batch_names]
    if clashing:
        raise ValueError(
            f"NamedEinsum: a batch axis must not have the name of an output axis, but {clashing} do: "
            f"batch axes {batch_names}, output axes {tuple(output_spec)}. Rename the batch axis first, "
            "or give it an index in every spec."
        )
    return batch_names


def _fit(inputs: tuple[Any, ...], specs: Sequence[dict[str, str]]) -> bool:
    sizes: dict[Any, int] = {}
    batches: list[dict[Any, int]] = []
    for array, spec in zip(inputs, specs, strict=True):
        if not isinstance(array, NamedArrayBase) or array.positional_shape:
            return False
        shape = array.named_shape
        if not is_floating(array.dtype) or any(name not in shape for name in spec):
            return False
        if any(sizes.setdefault(index, shape[name]) != shape[name] for name, index in spec.items()):
            return False
        batches.append({name: size for name, size in shape.items() if name not in spec})
    return all(batch == batches[0] for batch in batches)


def _raise_misfit(inputs: tuple[Any, ...], specs: Sequence[dict[str, str]]) -> None:
    patterns = tuple(
        chk.ArraySpec(
            named_shape={
                **chk.var("batch"),
                **{name: chk.var("index")[index] for name, index in spec.items()},
            },
            dtype=jnp.floating,
        )
        for spec in specs
    )
    chk.check_structure(
        inputs, patterns, error_prefix="Error while checking the inputs of a NamedEinsum:\n"
    )


def contract_labelled(
    operands: list[jax.Array],
    labels: list[list[Any]],
    result_labels: list[Any],
    *,
    precision: Any,
    preferred_element_type: Any,
) -> jax.Array:
    """Sums products of arrays with labelled axes into axes `result_labels`."""
    if _is_plain_pair(labels, result_labels):
        return contract_data(
            operands[0],
            tuple(labels[0]),
            operands[1],
            tuple(labels[1]),
            tuple(result_labels),
            precision=precision,
            preferred_element_type=preferred_element_type,
        )
    distinct = dict.fromkeys(label for axis_labels in labels for label in axis_labels)
    number = {label: i for i, label in enumerate(distinct)}
    arguments: list[Any] = []
    for data, axis_labels in zip(operands, labels, strict=True):
        arguments += [data, [number[label] for label in axis_labels]]
    arguments.append([number[label] for label in result_labels])
    return jnp.einsum(
        *arguments, precision=precision, preferred_element_type=preferred_element_type
    )


def _is_plain_pair(labels: list[list[Any]], result_labels: list[Any]) -> bool:
    """Whether one `dot_general` does it: two operands, no diagonal, no index summed in one alone."""
    if len(labels) != 2 or any(len(set(one)) != len(one) for one in labels):
        return False
    left, right = labels
    return all(
        (label in left and label in right) or label in result_labels for label in left + right
    )
