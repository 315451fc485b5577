"""Small models for the tests, built from pz_nn alone."""

import jax
import jax.numpy as jnp
import numpy as np

from pz_core.random_stream import RandomStream
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, StateVariable, bind_variables, unbind_params
from pz_named.named_axes import wrap
from pz_nn.basic_ops import Elementwise
from pz_nn.combinators import Residual
from pz_nn.dropout import StochasticDropout
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import LayerStack, LayerStackVarBehavior
from pz_nn.linear_and_affine import Affine, Linear
from pz_nn.standardization import RMSLayerNorm


def key(seed=0):
    return jax.random.key(seed)


def mlp(sizes, *, name="mlp", seed=0, drop_rate=None):
    """As `pz_models.simple_mlp.MLP`, which this wheel may not import."""
    layers = []
    for i in range(len(sizes) - 1):
        if i:
            layers.append(Elementwise(jax.nn.relu))
            if drop_rate is not None:
                layers.append(StochasticDropout(drop_rate))
        layers.append(
            Affine.from_config(
                f"{name}/Affine_{i}",
                key(seed),
                input_axes={"features": sizes[i]},
                output_axes={"features": sizes[i + 1]},
            )
        )
    return Sequential(layers)


def block(init_base_rng, name="block", width=4, hidden=6, drop_rate=None):
    inner = [
        RMSLayerNorm.from_config(f"{name}/norm", init_base_rng, across_axes={"embedding": width}),
        Linear.from_config(f"{name}/up", init_base_rng, {"embedding": width}, {"neurons": hidden}),
        Elementwise(jax.nn.silu),
        Linear.from_config(
            f"{name}/down", init_base_rng, {"neurons": hidden}, {"embedding": width}
        ),
    ]
    if drop_rate is not None:
        inner.insert(3, StochasticDropout(drop_rate))
    return Residual(NamedGroup("feed_forward", inner))


def stack(depth=3, seed=0, axis="blocks", **config):
    return LayerStack.from_sublayer_builder(
        block,
        stack_axis=axis,
        stack_axis_size=depth,
        init_base_rng=key(seed),
        builder_kwargs={"name": "net/blocks", **config},
    )


def unstacked(stacked, depth=3, axis="blocks"):
    """The blocks of a stack as a list of plain layers that compute the same."""
    from pz_core.selectors import select
    from pz_core.variables import freeze_params
    from pz_named.named_axes import is_namedarray

    frozen = freeze_params(stacked.stacked_sublayers)
    return [
        select(frozen)
        .at_subtrees_where(lambda node: bool(is_namedarray(node) and axis in node.named_shape))
        .apply(lambda array, i=i: array[{axis: i}])
        for i in range(depth)
    ]


@pytree_dataclass
class CountCalls(Layer):
    """Adds 1 to a counter at each call, and the counter to its input."""

    count: StateVariable

    def __call__(self, x, /, **_side_inputs):
        self.count.value = self.count.value + 1
        return x + self.count.value


def counter(label="counter", **metadata):
    return CountCalls(StateVariable(jnp.int32(0), label=label, metadata=metadata))


def per_layer_counter(depth, axis="blocks", label="counter"):
    value = wrap(jnp.zeros(depth, jnp.int32)).tag(axis)
    metadata = {"layerstack_axes": {axis: LayerStackVarBehavior.PER_LAYER}}
    return CountCalls(StateVariable(value, label=label, metadata=metadata))


def random_input(seed=0, **shape):
    return wrap(jax.random.normal(key(seed), tuple(shape.values()))).tag(*shape)


def stream(seed=0):
    return RandomStream.from_base_key(key(seed), offset_label="rng_offset")


def with_random_parameters(model, seed=7):
    """Sets every trainable parameter, so that the corrections of adapters are not zero."""
    slots, params = unbind_params(model)
    new = [
        Parameter(
            label=p.label,
            value=jax.tree.map(
                lambda x, i=i: jax.random.normal(key(seed + i), x.shape, x.dtype), p.value
            ),
        )
        for i, p in enumerate(params)
    ]
    return bind_variables(slots, new)


def assert_trees_close(actual, expected, atol=1e-6):
    """Equal structure up to named-axis order, and close values."""
    from pz_named.named_axes import is_namedarray

    def plain(x):
        return x.canonicalize().data_array if is_namedarray(x) else x

    actual, expected = (
        jax.tree_util.tree_map(plain, t, is_leaf=is_namedarray) for t in (actual, expected)
    )
    assert jax.tree_util.tree_structure(actual) == jax.tree_util.tree_structure(expected)
    for a, e in zip(
        jax.tree_util.tree_leaves(actual), jax.tree_util.tree_leaves(expected), strict=True
    ):
        if jnp.issubdtype(jnp.asarray(a).dtype, jax.dtypes.prng_key):
            a, e = jax.random.key_data(a), jax.random.key_data(e)
        np.testing.assert_allclose(np.asarray(a), np.asarray(e), atol=atol, rtol=1e-5)
