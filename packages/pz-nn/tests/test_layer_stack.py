import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from block_zoo import (
    CAPACITY,
    STATEFUL,
    ZOO,
    CountCalls,
    F,
    Remember,
    affine,
    gated_mlp,
)
from nn_helpers import assert_close, axis_order, named, raises, raw

from pz_core.random_stream import RandomStream
from pz_core.struct import pytree_dataclass
from pz_core.tree_util import CustomGetAttrKey
from pz_core.variables import (
    AbstractVariable,
    Parameter,
    ParameterSlot,
    StateVariable,
    bind_variables,
    freeze_variables,
    unbind_params,
    unbind_variables,
    variable_jit,
)
from pz_named import named_axes as nx
from pz_nn.basic_ops import Elementwise
from pz_nn.grouping import Identity, Sequential
from pz_nn.layer import Layer
from pz_nn.layer_stack import (
    LayerStack,
    LayerStackGetAttrKey,
    LayerStackVarBehavior,
    layerstack_axes_from_keypath,
)

PER_LAYER = LayerStackVarBehavior.PER_LAYER
SHARED = LayerStackVarBehavior.SHARED
DEPTH = 2


def stack_of(builder, key, **options):
    return LayerStack.from_sublayer_builder(
        builder, "blocks", DEPTH, key, {"name": "net/blocks"}, **options
    )


def unstacked(builder, key):
    """The blocks of `stack_of`, each built alone, labels made unique."""
    blocks = []
    for i, block_key in enumerate(jax.random.split(key, DEPTH)):
        block = builder(name="net/blocks", init_base_rng=block_key)
        _, variables = unbind_variables(block)
        for variable in variables:
            variable.label = variable.label.replace("blocks", f"block_{i}")
        blocks.append(block)
    return Sequential(blocks)


def inputs():
    x = named(0, {"batch": 2, "seq": 3, "f": F})
    filled = jnp.where(jnp.arange(CAPACITY) < 3, jnp.arange(CAPACITY), -1)
    side_inputs = {
        "token_positions": nx.arange("seq", 3),
        "kv_positions": nx.wrap(filled, "seq"),
        "end": 0,
    }
    return x, side_inputs


def pure(model, side_inputs):
    """(parameters, x, stream offset) -> (output, all states) as one pure function, and its values."""
    stream = RandomStream.from_base_key(jax.random.key(7))
    slots, variables = unbind_variables((model, stream), freeze=True)
    params = [v for v in variables if isinstance(v.get_slot(), ParameterSlot)]
    states = [v for v in variables if not isinstance(v.get_slot(), ParameterSlot)]

    def run(params, states, x):
        fresh = [v.unfreeze_as_copy() for v in states]
        bound, stream = bind_variables(slots, [*params, *fresh])
        y = bound(x, random_stream=stream, **side_inputs)
        return y, [v.freeze() for v in fresh]

    return run, params, states


def per_block(values, labels_of):
    """Values of unstacked variables as those of the stacked ones: by label, stacked."""
    stacked = {}
    for value in values:
        stacked.setdefault(labels_of(value.label), []).append(value.value)
    return stacked


def stacked_label(label):
    head, _, rest = label.partition("/block_")
    return f"{head}/blocks{rest[1:]}" if rest else label


def assert_same_variables(stacked, separate):
    """Compares variables of a stack with those of its unstacked blocks."""
    by_label = per_block(separate, stacked_label)
    assert {v.label for v in stacked} == set(by_label)
    for variable in stacked:
        blocks = by_label[variable.label]
        if variable.label == "random_stream_offset":
            assert int(variable.value) == int(blocks[0])
            continue
        got = jax.tree.leaves(variable.value, is_leaf=nx.is_namedarray)
        want = zip(*(jax.tree.leaves(b, is_leaf=nx.is_namedarray) for b in blocks), strict=True)
        for a, slices in zip(got, want, strict=True):
            expected = nx.stack(list(slices), "blocks")
            order = axis_order(a)
            assert_close(raw(a, *order), raw(expected, *order), 1e-4)


@pytest.mark.parametrize("builder", ZOO, ids=lambda b: b.__name__)
def test_stacked_equals_unstacked(builder, key):
    x, side_inputs = inputs()
    stack, sequence = stack_of(builder, key), unstacked(builder, key)
    rounds = 2 if builder in STATEFUL else 1  # the second goes on from the states of the first

    def outcome(model):
        run, params, states = pure(model, side_inputs)

        def loss(params):
            y, states_now = x, states
            for _ in range(rounds):
                y, states_now = run(params, states_now, y)
            return jnp.sin(y.data_array).sum(), (y, states_now)

        (_, (y, states)), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return y, states, gradients

    y, states, gradients = outcome(stack)
    expected, expected_states, expected_gradients = outcome(sequence)
    assert axis_order(y) == axis_order(x)
    assert_close(raw(y, *axis_order(x)), raw(expected, *axis_order(x)))
    assert_same_variables(states, expected_states)
    assert_same_variables(gradients, expected_gradients)


# --- the loop itself --------------------------------------------------------------------------------


@pytest.mark.smoke
def test_stack_equals_a_hand_written_scan(key):
    stack = stack_of(affine, key)
    x = named(1, {"batch": 2, "f": F})
    _, (weights, bias) = unbind_params(stack)
    w, b = (raw(p.value.order_as("blocks", *rest)) for p, rest in
            ((weights, ("f", "f_out")), (bias, ("f",))))  # fmt: skip
    expected = raw(x)
    for i in range(DEPTH):
        expected = expected @ w[i] + b[i]
    assert_close(raw(stack(x), "batch", "f"), expected)


def test_an_eager_stack_is_traced_once(key):
    traces = []

    def noting(v):
        traces.append(1)
        return v * 2.0

    def builder(name, init_base_rng):
        return Sequential([affine(name, init_base_rng), Elementwise(noting)])

    stack = stack_of(builder, key)
    x = named(1, {"batch": 2, "f": F})
    first = stack(x)
    seen = len(traces)
    for _ in range(3):
        assert_close(raw(stack(x)), raw(first))
    assert len(traces) == seen
    stack(named(1, {"batch": 5, "f": F}))  # another shape is another program
    assert len(traces) > seen


def test_program_size_does_not_grow_with_depth(key):
    def equations(size):
        stack = LayerStack.from_sublayer_builder(
            gated_mlp, "blocks", size, None, {"name": "net/blocks"}
        )
        spec = jax.eval_shape(
            lambda: unbind_variables(
                LayerStack.from_sublayer_builder(
                    gated_mlp, "blocks", size, key, {"name": "net/blocks"}
                ),
                freeze=True,
            )[1]
        )
        x = jax.eval_shape(lambda: nx.zeros({"batch": 2, "f": F}))
        run = jax.jit(lambda values, x: bind_variables(stack, values)(x))
        return run.lower(spec, x).as_text()

    shallow, deep = equations(2), equations(6)
    assert shallow.count("\n") == deep.count("\n")
    assert shallow.replace("2x", "Nx") != deep  # the guard can fail: sizes do differ


@pytest.mark.parametrize("options", [{"unroll": 2}, {"checkpoint": "nothing_saveable"}])
def test_options_change_no_value(options, key):
    x, _ = inputs()
    plain, other = stack_of(gated_mlp, key), stack_of(gated_mlp, key, **options)
    for name, value in options.items():
        assert getattr(other, name) == value
    results = []
    for stack in (plain, other):
        slots, params = unbind_params(stack, freeze=True)

        def loss(params, slots=slots):
            return jnp.sin(bind_variables(slots, params)(x).data_array).sum()

        results.append(jax.value_and_grad(loss)(params))
    (a, grads_a), (b, grads_b) = results
    assert_close(a, b)
    for g, h in zip(grads_a, grads_b, strict=True):
        assert_close(raw(g.value), raw(h.value))


def test_checkpoint_recomputes_instead_of_saving(key):
    """The residuals of a checkpointed stack are the inputs of its blocks alone."""
    x, _ = inputs()

    def saved(stack):
        slots, params = unbind_params(stack, freeze=True)
        _, pull_back = jax.vjp(lambda p: bind_variables(slots, p)(x).data_array, params)
        return sum(leaf.size for leaf in jax.tree.leaves(pull_back))

    policy = jax.checkpoint_policies.nothing_saveable
    assert saved(stack_of(gated_mlp, key, checkpoint=policy)) < saved(stack_of(gated_mlp, key))


def test_a_stack_of_nothing_returns_its_argument(key):
    x = named(0, {"f": F})
    stack = LayerStack.from_sublayer_builder(affine, "blocks", 0, None, {"name": "net/blocks"})
    values = [
        Parameter(label=slot.label, value=nx.zeros({"blocks": 0, **shape}))
        for slot, shape in (
            (ParameterSlot("net/blocks/Linear.weights"), {"f": F, "f_out": F}),
            (ParameterSlot("net/blocks/AddBias.bias"), {"f": F}),
        )
    ]
    assert_close(raw(stack.bind_variables(values)(x)), raw(x))


def test_shared_arrays_and_numbers_are_not_sliced():
    """Only named arrays with the stack axis differ per block; side inputs and argument stay whole."""

    @pytree_dataclass
    class Mixed(Layer):
        per_block: object
        shared: object
        plain: object
        number: float

        def __call__(self, x, /, *, bonus, **_side_inputs):
            assert isinstance(self.number, float)
            return x * self.per_block + self.shared + self.plain[0] * self.number + bonus

    per_block = nx.wrap(jnp.array([1.0, 2.0]), "blocks")
    stack = LayerStack(
        Mixed(per_block, nx.wrap(jnp.array(3.0)), jnp.array([5.0, 7.0]), 0.5), "blocks", 2
    )
    y = stack(nx.wrap(jnp.array([1.0]), "f"), bonus=nx.wrap(jnp.array(10.0)))
    first = 1 * 1 + 3 + 2.5 + 10
    assert_close(raw(y), [first * 2 + 3 + 2.5 + 10])


def test_parameters_are_read_only_inside():
    @pytree_dataclass
    class Overwrites(Layer):
        weight: Parameter

        def __call__(self, x, /, **_side_inputs):
            self.weight.value = x
            return x

    weight = Parameter(label="w", value=nx.ones({"blocks": 2}))
    with raises(dataclasses.FrozenInstanceError, "value"):
        LayerStack(Overwrites(weight), "blocks", 2)(nx.ones({"f": 1}))


def test_parameters_in_side_inputs_are_readable():
    @pytree_dataclass
    class Scales(Layer):
        def __call__(self, x, /, *, scale, **_side_inputs):
            return x * scale.value

    scale = Parameter(label="s", value=nx.wrap(jnp.array(3.0)))
    y = LayerStack(Scales(), "blocks", 2)(nx.ones({"f": 1}), scale=scale)
    assert_close(raw(y), [9.0])


# --- state ------------------------------------------------------------------------------------------


def counter(behavior, value, label="count"):
    metadata = {} if behavior is None else {"layerstack_axes": {"blocks": behavior}}
    return StateVariable(value, label=label, metadata=metadata)


def test_shared_and_per_layer_state():
    x = nx.wrap(jnp.array(1.0))
    shared = counter(SHARED, jnp.array(0.0))
    assert_close(raw(LayerStack(CountCalls(shared), "blocks", 3)(x)), 1.0 * 1.1 * 1.2)
    assert float(shared.value) == 3.0
    own = counter(PER_LAYER, nx.wrap(jnp.array([0.0, 10.0, 20.0]), "blocks"))
    assert_close(raw(LayerStack(CountCalls(own), "blocks", 3)(x)), 1.0 * 2.0 * 3.0)
    assert raw(own.value).tolist() == [1.0, 11.0, 21.0]


def test_a_shared_state_may_also_stand_in_the_side_inputs():
    @pytree_dataclass
    class CountsBoth(Layer):
        count: StateVariable

        def __call__(self, x, /, *, other, **_side_inputs):
            assert other is self.count
            other.value = other.value + 1
            return x

    shared = counter(SHARED, jnp.array(0))
    LayerStack(CountsBoth(shared), "blocks", 2)(nx.ones({"f": 1}), other=shared)
    assert int(shared.value) == 2


def test_stack_axis_comes_first_in_results_and_may_stand_anywhere_in_inputs():
    state = counter(PER_LAYER, nx.zeros({"f": 2, "blocks": 3}))
    LayerStack(CountCalls(state), "blocks", 3)(nx.ones({"f": 2}))
    assert axis_order(state.value) == ["blocks", "f"]


def test_intermediates_are_saved_without_metadata():
    """Empty state counts as per layer, at the first call and at the next ones."""
    saved = StateVariable(None)
    stack = LayerStack(Sequential([Elementwise(jnp.tanh), Remember(saved)]), "blocks", 3)
    x = nx.wrap(jnp.array([0.5, 2.0]), "f")
    for _ in range(2):
        stack(x)
        expected = [np.tanh([0.5, 2.0]), np.tanh(np.tanh([0.5, 2.0]))]
        assert axis_order(saved.value) == ["blocks", "f"]
        assert_close(raw(saved.value)[:2], expected)
    variable_jit(lambda stack, x: stack(x))(stack, x * 2)
    assert_close(raw(saved.value)[0], np.tanh([1.0, 4.0]))


def test_plain_arrays_saved_in_empty_state_get_the_stack_axis():
    @pytree_dataclass
    class SavesRaw(Layer):
        saved: StateVariable

        def __call__(self, x, /, **_side_inputs):
            self.saved.value = {"raw": x.unwrap("f"), "nothing": None}
            return x

    saved = StateVariable(None)
    LayerStack(SavesRaw(saved), "blocks", 3)(nx.ones({"f": 2}))
    assert saved.value["raw"].named_shape == {"blocks": 3}
    assert saved.value["raw"].positional_shape == (2,)
    with_names = counter(PER_LAYER, nx.zeros({"blocks": 3}))
    with raises(ValueError, "'count'", "PER_LAYER", "without names", "nx.wrap"):
        LayerStack(SavesRaw(with_names), "blocks", 3)(nx.ones({"f": 2}))


def test_nothing_is_assigned_when_a_block_fails():
    @pytree_dataclass
    class Fails(Layer):
        count: StateVariable

        def __call__(self, x, /, **_side_inputs):
            self.count.value = self.count.value + 1
            raise RuntimeError("on purpose")

    count = counter(SHARED, jnp.array(0))
    with pytest.raises(RuntimeError, match="on purpose"):
        LayerStack(Fails(count), "blocks", 2)(nx.ones({"f": 1}))
    assert int(count.value) == 0


def test_random_streams_go_on_from_block_to_block():
    """Test vector: three draws from a stream with base key(1) use fold_in(key(1), 0..2)."""

    @pytree_dataclass
    class Draws(Layer):
        saved: StateVariable

        def __call__(self, x, /, *, random_stream, **_side_inputs):
            self.saved.value = nx.wrap(jax.random.uniform(random_stream.next_key()))
            return x

    saved = StateVariable(None)
    stream = RandomStream.from_base_key(jax.random.key(1))
    LayerStack(Draws(saved), "blocks", 3)(nx.ones({"f": 1}), random_stream=stream)
    expected = [jax.random.uniform(jax.random.fold_in(jax.random.key(1), i)) for i in range(3)]
    assert_close(raw(saved.value), expected)
    assert int(stream.offset.value) == 3


def test_nested_stacks(key):
    """A stack of stacks equals the flat stack; metadata names both axes."""

    def inner(name, init_base_rng):
        def block(name, init_base_rng):
            count = counter(None, nx.wrap(jnp.array(0.0)), f"{name}/count")
            return Sequential([affine(name, init_base_rng), CountCalls(count)])

        return LayerStack.from_sublayer_builder(block, "inner", 2, init_base_rng, {"name": name})

    stack = LayerStack.from_sublayer_builder(inner, "outer", 3, key, {"name": "net"})
    x = named(0, {"f": F})
    _, variables = unbind_variables(stack)
    weights, bias, count = variables
    assert axis_order(weights.value)[:2] == ["outer", "inner"]
    assert count.metadata["layerstack_axes"] == {"outer": PER_LAYER, "inner": PER_LAYER}
    w = raw(weights.value, "outer", "inner", "f", "f_out").reshape(6, F, F)
    b = raw(bias.value, "outer", "inner", "f").reshape(6, F)
    expected = raw(x)
    for i in range(6):
        expected = expected @ w[i] + b[i]
    assert_close(raw(stack(x)), expected)
    assert (raw(count.value) == 1.0).all()


def test_stacks_under_transformations(key):
    stack = freeze_variables(stack_of(gated_mlp, key))
    x = named(0, {"batch": 3, "f": F})
    eager = raw(stack(x))
    assert_close(raw(jax.jit(lambda s, x: s(x))(stack, x)), eager)
    mapped = jax.vmap(lambda row: stack(nx.wrap(row, "f")).unwrap("f"))(x.unwrap("batch", "f"))
    assert_close(mapped, eager)
    shapes = jax.eval_shape(lambda s, x: s(x), stack, x)
    assert shapes.named_shape == x.named_shape


# --- building ---------------------------------------------------------------------------------------


def test_builder_gives_slots_without_a_key_and_the_same_structure_with_one(key):
    def builder(name, init_base_rng):
        count = StateVariable(nx.wrap(jnp.array(0.0)), label=f"{name}/count")
        return Sequential([affine(name, init_base_rng), CountCalls(count)])

    with_key, without = stack_of(builder, key), stack_of(builder, None)
    slots_a, variables = unbind_variables(with_key)
    slots_b, states = unbind_variables(without)
    assert jax.tree.structure(slots_a) == jax.tree.structure(slots_b)
    assert [v.label for v in states] == ["net/blocks/count"]
    assert states[0].value.named_shape == {"blocks": DEPTH}
    assert all(axis_order(v.value)[0] == "blocks" for v in variables)


def test_builder_keeps_the_class_and_shares_states_on_request(key):
    @pytree_dataclass(has_implicitly_inherited_fields=True)
    class MyStack(LayerStack):
        pass

    def builder(name, init_base_rng):
        return Sequential([affine(name, init_base_rng), CountCalls(StateVariable(0.0, label="n"))])

    stack = MyStack.from_sublayer_builder(
        builder, "blocks", 2, key, {"name": "b"}, is_shared_state=lambda v: v.label == "n"
    )
    assert type(stack) is MyStack
    count = stack.stacked_sublayers.sublayers[1].count
    assert count.metadata == {"layerstack_axes": {"blocks": SHARED}}
    stack(named(0, {"f": F}))
    assert float(count.value) == 2.0


def test_initialisation_is_one_program_for_all_blocks():
    """The builder runs once, under vmap, so what is traced to initialise a stack is no larger for more blocks."""
    calls = []

    def builder(name, init_base_rng):
        calls.append(init_base_rng)
        return affine(name, init_base_rng)

    def equations(size):
        def initial(key):
            stack = LayerStack.from_sublayer_builder(builder, "blocks", size, key, {"name": "b"})
            return unbind_variables(stack, freeze=True)[1]

        return len(jax.make_jaxpr(initial)(jax.random.key(0)).eqns)

    assert equations(2) == equations(16)
    assert len(calls) == 2


def test_blocks_may_own_a_random_stream(key):
    @pytree_dataclass
    class Noise(Layer):
        stream: RandomStream

        def __call__(self, x, /, **_side_inputs):
            return x + jax.random.uniform(self.stream.next_key())

    base = jax.random.key(1)

    def builder(init_base_rng):
        del init_base_rng
        return Noise(RandomStream.from_base_key(base))

    stack = LayerStack.from_sublayer_builder(
        builder, "blocks", 3, key, {}, is_shared_state=lambda variable: True
    )
    draws = [jax.random.uniform(jax.random.fold_in(base, i)) for i in range(3)]
    assert_close(raw(stack(nx.zeros({}))), sum(draws))
    assert int(stack.stacked_sublayers.stream.offset.value) == 3


def test_builder_keeps_shared_parameters_numbers_and_metadata(key):
    @pytree_dataclass
    class Holds(Layer):
        first: object
        second: object
        number: float
        plain: object

        def __call__(self, x, /, **_side_inputs):
            return x

    def builder(name, init_base_rng):
        weight = Parameter(
            label=f"{name}.w", value=nx.wrap(jax.random.normal(init_base_rng)), metadata={"m": 1}
        )
        return Holds(weight, weight, 0.5, jnp.arange(2))

    block = LayerStack.from_sublayer_builder(builder, "b", 3, key, {"name": "n"}).stacked_sublayers
    assert block.first is block.second
    assert block.first.metadata == {"m": 1}
    assert block.number == 0.5
    assert isinstance(block.number, float)
    assert block.plain.shape == (2,)
    assert_close(raw(block.first.value)[1], jax.random.normal(jax.random.split(key, 3)[1]))


def test_keys_tell_the_stack_axis(key):
    inner = LayerStack(affine("n", None), "inner", 2)
    outer = LayerStack(Sequential([inner]), "outer", 3)
    path = jax.tree_util.tree_leaves_with_path(
        outer, is_leaf=lambda x: isinstance(x, ParameterSlot)
    )[0][0]
    assert layerstack_axes_from_keypath(path) == {"outer": 3, "inner": 2}
    assert list(layerstack_axes_from_keypath(path)) == ["outer", "inner"]
    assert layerstack_axes_from_keypath(()) == {}
    assert path[0] == LayerStackGetAttrKey("stacked_sublayers", "outer", 3)
    assert path[0] != jax.tree_util.GetAttrKey("stacked_sublayers")
    assert isinstance(path[0], CustomGetAttrKey)
    assert str(path[0]) == ".stacked_sublayers"


# --- errors -----------------------------------------------------------------------------------------


class Odd(AbstractVariable):
    """A variable that is neither parameter nor state."""

    def freeze(self):
        raise NotImplementedError

    def get_slot(self):
        return ParameterSlot("odd")

    def update(self, new_frozen_value):
        raise NotImplementedError


def test_other_kinds_of_variables_are_refused(key):
    with raises(ValueError, "the blocks", "Odd"):
        LayerStack(Sequential([Odd()]), "blocks", 2)(nx.ones({"f": 1}))
    with raises(ValueError, "the side inputs", "Odd"):
        LayerStack(Identity(), "blocks", 2)(nx.ones({"f": 1}), odd=Odd())
    with raises(ValueError, "from_sublayer_builder", "Odd"):
        stack_of(lambda name, init_base_rng: Sequential([Odd()]), key)


def test_builder_rules(key):
    with raises(TypeError, "a str", "static"):
        stack_of(lambda name, init_base_rng: Sequential(["a string"]), key)
    with pytest.raises(ValueError, match="vmap"):
        stack_of(lambda name, init_base_rng: Sequential([jax.random.normal(init_base_rng)]), key)


def test_unhashable_leaves_run_without_the_cache():
    class Weird(list):
        __hash__ = None

    weird = Weird([2.0])

    @pytree_dataclass
    class Uses(Layer):
        def __call__(self, x, /, *, weird, **_side_inputs):
            return x * weird[0]

    stack = LayerStack(Uses(), "blocks", 2)
    assert_close(raw(stack(nx.ones({"f": 1}), weird=weird)), [4.0])
