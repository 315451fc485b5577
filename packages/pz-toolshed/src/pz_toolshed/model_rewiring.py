"""Layers that reroute or replace values inside a model, for causal interventions.

The idea: counterfactual variants of one input ("worlds") are stacked along a named axis and run
through the model together; a rewiring layer decides, at one place, which world's value each
world goes on with. Path patching, ablation and restoration are then edits of the model.

    patch = RewireComputationPaths(
        worlds_axis="worlds",
        world_ordering=("clean", "corrupted", "patched"),
        taking={"clean": From("clean"), "corrupted": From("corrupted"), "patched": From("clean")},
    )
    model = select(model).at(lambda m: m.body.sublayers[3]).insert_before(patch)

Reference for path patching: Wang et al., "Interpretability in the Wild", arXiv:2211.00593.
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.struct import pytree_dataclass
from pz_core.variables import bind_variables, freeze_params, unbind_variables
from pz_named.named_axes import NamedArrayBase, is_namedarray, nmap, wrap
from pz_nn.layer import Layer

__all__ = ["From", "KnockOutAttentionHeads", "LinearizeAndAdjust", "RewireComputationPaths"]

Weight: TypeAlias = Any
"""A Python or JAX scalar, or a named array without positional axes."""


@pytree_dataclass
class KnockOutAttentionHeads(Layer):
    """Redirects attention heads to one fixed key.

    Put it behind the softmax of an attention layer. With `e` the one-hot distribution on the key
    `redirect_to` and `m` the mask, the output is `e + m * (attention - e)`: heads with mask 1 stay
    as they are, those with 0 look at that key alone, and what is between interpolates, so that the
    gradient with respect to the mask scores the heads.

    Attributes:
      head_mask: Named array; its axes are broadcast by name against the attention weights
        (`heads`, `worlds`, ...), and those that the weights lack are added to the output.
      redirect_to: Index of the key along `kv_axis`: an integer, or a named integer array where it
        differs between batch entries (a cache padded on the left). Default 0, where the
        beginning-of-sequence token usually is.
      kv_axis: Name of the key axis of the attention weights.
    """

    head_mask: NamedArrayBase
    redirect_to: int | NamedArrayBase = 0
    kv_axis: str = dataclasses.field(default="kv_seq", metadata={"pytree_node": False})

    def __call__(self, attention: NamedArrayBase, /, **_side_inputs: Any) -> NamedArrayBase:
        """Applies the mask.

        Args:
          attention: Attention weights with the axis `kv_axis`.
          **_side_inputs: Ignored.

        Returns:
          The mixed weights, in the dtype that mask and weights promote to.

        Raises:
          KeyError: If the weights have no axis `kv_axis`.
        """
        if self.kv_axis not in attention.named_shape:
            raise KeyError(
                f"KnockOutAttentionHeads: the input has no axis {self.kv_axis!r}; its axes are "
                f"{attention.named_shape}. Put the layer behind the softmax over keys, or set "
                "kv_axis to the name of the key axis."
            )
        keys = wrap(jnp.arange(attention.named_shape[self.kv_axis])).tag(self.kv_axis)
        one_hot = (keys == self.redirect_to).astype(attention.dtype)
        mixed = one_hot + self.head_mask * (attention - one_hot)
        # The axes of the attention weights keep their order, so a layer stack can carry them on.
        added = [name for name in mixed.named_shape if name not in attention.named_shape]
        return mixed.order_as(*attention.named_shape, *added)


@dataclasses.dataclass(frozen=True)
class From:
    """One term of a rewired value: `weight` times the value of world `source`.

    Attributes:
      source: Name of a world.
      weight: Scalar, or a named array without positional axes (one weight per head, for example).
        A leaf of the model: it can be differentiated, and a new value does not compile again.
    """

    source: str
    weight: Weight = 1.0


jax.tree_util.register_dataclass(From, data_fields=["weight"], meta_fields=["source"])


@pytree_dataclass
class RewireComputationPaths(Layer):
    """Replaces each world's value by a weighted sum of the worlds' values.

    For every destination world `t`, `y[t] = sum_s weight[t, s] * x[s]`.

    Attributes:
      worlds_axis: Name of the axis along which worlds are stacked.
      world_ordering: Names of the worlds, in the order of that axis.
      taking: For each world, where its value comes from: one `From`, or a tuple of them, whose
        terms are added; the empty tuple gives zeros.

    Raises:
      ValueError: At construction, if `taking` and `world_ordering` do not name the same worlds, a
        source is unknown, or a weight has positional axes.
    """

    worlds_axis: str = dataclasses.field(metadata={"pytree_node": False})
    world_ordering: tuple[str, ...] = dataclasses.field(metadata={"pytree_node": False})
    taking: dict[str, From | tuple[From, ...]]

    def __post_init__(self) -> None:
        worlds = set(self.world_ordering)
        if len(worlds) != len(self.world_ordering) or worlds != set(self.taking):
            raise ValueError(
                "RewireComputationPaths: `taking` must have exactly the worlds of "
                f"`world_ordering`, each once. world_ordering={tuple(self.world_ordering)}, "
                f"taking has {tuple(self.taking)}. Add `world: From(world)` for a world that "
                "keeps its value."
            )
        for destination, terms in self.taking.items():
            for term in _as_terms(terms):
                _check_term(term, destination, self.world_ordering)

    def path_matrix(self) -> NamedArrayBase:
        """The weights as one array.

        Returns:
          Named array with two positional axes, to and from, in world order, and the named axes of
          the weights.
        """
        rows = [
            [self._weight(to, source) for source in self.world_ordering]
            for to in self.world_ordering
        ]
        matrix: NamedArrayBase = nmap(lambda rows: jnp.stack([jnp.stack(row) for row in rows]))(
            rows
        )
        return matrix

    def _weight(self, to: str, source: str) -> NamedArrayBase:
        terms = _as_terms(self.taking[to])
        weights = [term.weight for term in terms if term.source == source]
        total = sum(weights[1:], start=weights[0]) if weights else 0
        return total if is_namedarray(total) else wrap(jnp.asarray(total))

    def __call__(self, inputs: NamedArrayBase, /, **_side_inputs: Any) -> NamedArrayBase:
        """Rewires the worlds.

        Args:
          inputs: Named array with the axis `worlds_axis`.
          **_side_inputs: Ignored.

        Returns:
          Array of the dtype of the inputs, with their axes (worlds last) and those of the weights.

        Raises:
          ValueError: If the axis is missing or has another size than there are worlds, or if a
            fractional weight meets an integer input.
        """
        size = inputs.named_shape.get(self.worlds_axis)
        if size != len(self.world_ordering):
            raise ValueError(
                f"RewireComputationPaths: the input needs the axis {self.worlds_axis!r} of size "
                f"{len(self.world_ordering)}, one entry per world {tuple(self.world_ordering)}; "
                f"its axes are {inputs.named_shape}. Stack the worlds along {self.worlds_axis!r} "
                "before the model is called."
            )
        matrix = self.path_matrix()
        _check_cast_keeps_weights(matrix, inputs.dtype)
        mixed: NamedArrayBase = nmap(jnp.matmul)(
            matrix.astype(inputs.dtype), inputs.untag(self.worlds_axis)
        )  # {..., worlds}
        return mixed.tag(self.worlds_axis)


def _as_terms(terms: From | tuple[From, ...]) -> tuple[From, ...]:
    return (terms,) if isinstance(terms, From) else tuple(terms)


def _check_term(term: From, destination: str, worlds: tuple[str, ...]) -> None:
    if term.source not in worlds:
        raise ValueError(
            f"RewireComputationPaths: world {destination!r} takes from {term.source!r}, which is "
            f"no world. The worlds are {tuple(worlds)}."
        )
    if is_namedarray(term.weight) and term.weight.positional_shape:
        raise ValueError(
            f"RewireComputationPaths: the weight of {term.source!r} in world {destination!r} has "
            f"positional axes {term.weight.positional_shape}; weights are scalars or named "
            "arrays. Name the axes with .tag(...)."
        )


def _check_cast_keeps_weights(matrix: NamedArrayBase, dtype: Any) -> None:
    """Refuses fractional weights for integer values, where their values are known."""
    data = matrix.with_positional_prefix().data_array
    if not jnp.issubdtype(dtype, jnp.integer) or isinstance(data, jax.core.Tracer):
        return
    if not np.array_equal(np.asarray(data), np.rint(np.asarray(data))):
        raise ValueError(
            f"RewireComputationPaths: the input has integer dtype {dtype}, for which fractional "
            f"weights would be cut off; the weights are {np.asarray(data).tolist()}. Convert the "
            "input to a floating dtype first."
        )


@pytree_dataclass
class LinearizeAndAdjust(Layer):
    """Evaluates a layer's linear approximation around one point at another point.

    With `p = linearize_around(x)`, `q = evaluate_at(x)` and `f` the target, the output is
    `f(p) + J_f(p) (q - p)`: what `f` would give if it reacted linearly, as when a final norm is
    kept at its unpatched scale.

    State variables and random streams of the target and the side inputs advance as in the call
    `f(p)`; parameters are read-only in it.

    Attributes:
      linearize_around: Gives the point of the approximation.
      evaluate_at: Gives the point of the evaluation.
      target: The layer to approximate, e.g. a normalisation.
    """

    linearize_around: Layer
    evaluate_at: Layer
    target: Layer

    def __call__(self, inputs: Any, /, **side_inputs: Any) -> Any:
        """Applies the approximation.

        Args:
          inputs: Given to both adjusters.
          **side_inputs: Given to the adjusters and the target.

        Returns:
          A value with the structure of the target's output.

        Raises:
          ValueError: If the adjusters return trees of different structure.
          TypeError: If they return integers.
        """
        around = self.linearize_around(inputs, **side_inputs)
        at = self.evaluate_at(inputs, **side_inputs)
        around, at = _aligned(around, at)
        tangent = jax.tree_util.tree_map(jnp.subtract, at, around)
        (target, side), variables = unbind_variables((freeze_params(self.target), side_inputs))
        values = tuple(variable.freeze() for variable in variables)

        def run(point: Any) -> tuple[Any, Any]:
            inside = tuple(value.unfreeze_as_copy() for value in values)
            bound_target, bound_side = bind_variables((target, side), inside)
            output = bound_target(point, **bound_side)
            return output, tuple(variable.freeze() for variable in inside)

        output, change, finals = jax.jvp(run, (around,), (tangent,), has_aux=True)
        for variable, final in zip(variables, finals, strict=True):
            variable.update(final)
        return jax.tree_util.tree_map(jnp.add, output, change)


def _aligned(around: Any, at: Any) -> tuple[Any, Any]:
    """Broadcasts the leaves of two trees against each other, by name, to common dtypes."""
    around_def: Any
    at_def: Any
    around_leaves, around_def = jax.tree_util.tree_flatten(around, is_leaf=is_namedarray)
    at_leaves, at_def = jax.tree_util.tree_flatten(at, is_leaf=is_namedarray)
    if around_def != at_def:
        raise ValueError(
            "LinearizeAndAdjust: linearize_around and evaluate_at must return the same "
            f"structure; they returned {around_def} and {at_def}. Make both return what the "
            "target takes."
        )
    pairs = [_aligned_pair(*pair) for pair in zip(around_leaves, at_leaves, strict=True)]
    return (
        jax.tree_util.tree_unflatten(around_def, [pair[0] for pair in pairs]),
        jax.tree_util.tree_unflatten(at_def, [pair[1] for pair in pairs]),
    )


def _aligned_pair(around: Any, at: Any) -> tuple[Any, Any]:
    if not (is_namedarray(around) or is_namedarray(at)):
        dtype = jnp.result_type(around, at)
        shape = jnp.broadcast_shapes(jnp.shape(around), jnp.shape(at))
        around, at = (jnp.broadcast_to(jnp.asarray(x, dtype), shape) for x in (around, at))
        return around, at
    around, at = (x if is_namedarray(x) else wrap(jnp.asarray(x)) for x in (around, at))
    dtype = jnp.result_type(around.dtype, at.dtype)
    around = around.astype(dtype).broadcast_like(at)
    at = at.astype(dtype).broadcast_like(around)
    around = around.broadcast_like(at)
    names = tuple(around.named_shape)
    return around.order_as(*names), at.order_as(*names)
