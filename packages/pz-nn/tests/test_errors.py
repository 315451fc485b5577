"""Every error at a glance: what is wrong, which error says so in which words, and that its advice works.

`test_errors_of_settings` goes on with what is particular to single layers and to the surgery on stacks.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from block_zoo import CountCalls, F, H, P, Remember, attention
from error_cases import Case, check, ones

import pz_nn
from pz_core.struct import pytree_dataclass
from pz_core.variables import (
    AbstractVariable,
    Parameter,
    ParameterSlot,
    ParameterValue,
    StateVariable,
    StateVariableSlot,
    UnboundVariableError,
    VariableConflictError,
    bind_variables,
    freeze_variables,
    unbind_params,
    unbind_variables,
)
from pz_named import named_axes as nx
from pz_named import shapecheck as chk
from pz_nn.layer_stack import LayerStackVarBehavior

KEY = jax.random.key(0)
SHARED, PER_LAYER = LayerStackVarBehavior.SHARED, LayerStackVarBehavior.PER_LAYER


# --- layers -----------------------------------------------------------------------------------------


class Undecorated(pz_nn.Layer):
    """A layer whose author forgot the decorator."""

    def __call__(self, argument, /, **_side_inputs):
        return argument


Decorated = pytree_dataclass(type("Decorated", (Undecorated,), {}))


@pytree_dataclass
class WithoutCall(pz_nn.Layer):
    """A layer whose author forgot the call."""


@pytree_dataclass
class WithCall(WithoutCall):
    """The repair."""

    def __call__(self, argument, /, **_side_inputs):
        return argument


@pytree_dataclass
class Doubles(pz_nn.Layer):
    """Assigns to a variable."""

    variable: Any

    def __call__(self, argument, /, **_side_inputs):
        self.variable.value = 2 * self.variable.value
        return argument


def parameter(label, value=1.0):
    return Parameter(label=label, value=nx.wrap(jnp.asarray(value)))


def doubled_statelessly(values):
    layer, _ = unbind_variables(Doubles(parameter("w")))
    return float(layer.stateless_call(values, None)[1][0].value.data_array)


LAYERS = {
    "layer without the decorator": Case(
        TypeError, ("Undecorated", "@pytree_dataclass"), Undecorated, lambda: Decorated()(3), 3
    ),
    "layer without a call": Case(
        TypeError, ("WithoutCall", "__call__"), WithoutCall, lambda: WithCall()(3), 3
    ),
    "write to a frozen variable": Case(
        dataclasses.FrozenInstanceError,
        ("'value'",),
        lambda: Doubles(parameter("w")).stateless_call([], None),
        lambda: doubled_statelessly([parameter("w").freeze()]),
        2.0,
    ),
    "mutable variable given to a stateless call": Case(
        TypeError,
        ("stateless_call", "Parameter", "variable.freeze()"),
        lambda: doubled_statelessly([parameter("w")]),
        lambda: doubled_statelessly([parameter("w").freeze()]),
        2.0,
    ),
}

# --- structure --------------------------------------------------------------------------------------

LINEAR = pz_nn.Linear.from_config("net/query", KEY, {"f": 3}, {"g": 2})
IN_PLACE = pz_nn.Linear.from_config("f", KEY, {"f": 3}, {"f": 3})
EINSUM = pz_nn.NamedEinsum((("a", "b"), ("b", "c")), ("a", "c"))
CHECKED = pz_nn.CheckedSequential(
    chk.ArraySpec(named_shape={"x": 4}, dtype=jnp.floating),
    chk.ArraySpec(named_shape={"y": 4}),
    [pz_nn.RenameAxes("x", "z")],
)
CHECK = pz_nn.CheckStructure({"a": chk.ArraySpec(named_shape={"x": 3}, dtype=jnp.floating)})
CHECK_TWO = pz_nn.CheckStructure((chk.ANY, chk.ANY))
A, B = ones(a=2, b=3), ones(b=3, c=4)
mismatch = chk.StructureMismatchError

STRUCTURE = {
    "Linear: missing axis": Case(
        mismatch,
        ("(net/query) ", "At root", "axis 'f' is missing (expected size 3)"),
        lambda: LINEAR(ones(x=3)),
        lambda: LINEAR(ones(f=3)),
        {"g": 2},
    ),
    "Linear: size": Case(
        mismatch,
        ("(net/query) ", "At root", "axis 'f': size 4, expected 3"),
        lambda: LINEAR(ones(f=4)),
        lambda: LINEAR(ones(f=3)),
        {"g": 2},
    ),
    "Linear: dtype": Case(
        mismatch,
        ("(net/query) ", "dtype int32, expected floating"),
        lambda: LINEAR(ones(jnp.int32, f=3)),
        lambda: LINEAR(ones(jnp.int32, f=3).astype(jnp.float32)),
        {"g": 2},
    ),
    "Linear: positional axis": Case(
        mismatch,
        ("(net/query) ", "positional shape (3)", "axis 'f' is missing"),
        lambda: LINEAR(nx.wrap(jnp.ones(3))),
        lambda: LINEAR(nx.wrap(jnp.ones(3)).tag("f")),
        {"g": 2},
    ),
    "Linear: output axis there before": Case(
        mismatch,
        ("(net/query) ", "g: 2 (output: 2)", "{'f': 3, 'g': 2}", "RenameAxes"),
        lambda: LINEAR(ones(f=3, g=2)),
        lambda: LINEAR(pz_nn.RenameAxes("g", "h")(ones(f=3, g=2))),
        {"h": 2, "g": 2},
    ),
    "Linear: output axis there with another size": Case(
        ValueError,
        ("(net/query) ", "g: 7 (output: 2)", "{'f': 3, 'g': 7}", "RenameAxes"),
        lambda: LINEAR(ones(f=3, g=7)),
        lambda: LINEAR(pz_nn.RenameAxes("g", "h")(ones(f=3, g=7))),
        {"h": 7, "g": 2},
    ),
    "LinearInPlace: batch axis of the made-up name": Case(
        mismatch,
        ("(f) ", "f_out: 3 (output: 3)", "RenameAxes"),
        lambda: IN_PLACE(ones(f_out=3, f=3)),
        lambda: IN_PLACE(pz_nn.RenameAxes("f_out", "rows")(ones(f_out=3, f=3))),
        {"rows": 3, "f": 3},
    ),
    "NamedEinsum: size": Case(
        mismatch,
        ("NamedEinsum", "At root[1]", "axis 'b': size 5", "is 3 from root[0]"),
        lambda: EINSUM((A, ones(b=5, c=4))),
        lambda: EINSUM((A, B)),
        {"a": 2, "c": 4},
    ),
    "NamedEinsum: batch axis in one input": Case(
        mismatch,
        ("NamedEinsum", "At root[1]", "axis 'n' is missing", "2"),
        lambda: EINSUM((ones(n=2, a=2, b=3), B)),
        lambda: EINSUM((ones(n=2, a=2, b=3), B.broadcast_to((), {"n": 2, "b": 3, "c": 4}))),
        {"n": 2, "a": 2, "c": 4},
    ),
    "NamedEinsum: list": Case(
        ValueError,
        ("NamedEinsum", "a tuple of 2", "a list of length 2", "layer((a, b))"),
        lambda: EINSUM([A, B]),
        lambda: EINSUM((A, B)),
        {"a": 2, "c": 4},
    ),
    "NamedEinsum: count": Case(
        ValueError,
        ("NamedEinsum", "a tuple of 2", "a tuple of length 1", "layer((a, b))"),
        lambda: EINSUM((A,)),
        lambda: EINSUM((A, B)),
        {"a": 2, "c": 4},
    ),
    "CheckedSequential: input": Case(
        mismatch,
        ("the input of a checked sequential", "At root", "axis 'x': size 3, expected 4"),
        lambda: CHECKED(ones(x=3)),
        lambda: dataclasses.replace(CHECKED, output_like=chk.ANY)(ones(x=4)),
        {"z": 4},
    ),
    "CheckedSequential: output": Case(
        mismatch,
        ("the output of a checked sequential", "'y' is missing (expected size 4)", "'z' (size 4)"),
        lambda: CHECKED(ones(x=4)),
        lambda: dataclasses.replace(CHECKED, sublayers=[pz_nn.RenameAxes("x", "y")])(ones(x=4)),
        {"y": 4},
    ),
    "CheckStructure: size and dtype": Case(
        mismatch,
        ("CheckStructure", "root['a']", "axis 'x': size 2, expected 3"),
        lambda: CHECK({"a": ones(x=2)}),
        lambda: CHECK({"a": ones(x=3)})["a"],
        {"x": 3},
    ),
    "CheckStructure: container": Case(
        mismatch,
        ("CheckStructure", "At root", "expected dict, found list"),
        lambda: CHECK([ones(x=3)]),
        lambda: CHECK({"a": ones(x=3)})["a"],
        {"x": 3},
    ),
    "CheckStructure: length": Case(
        mismatch,
        ("CheckStructure", "At root", "missing [1]"),
        lambda: CHECK_TWO((1,)),
        lambda: CHECK_TWO((1, 2)),
        (1, 2),
    ),
}

# --- axes -------------------------------------------------------------------------------------------


def positional():
    return nx.wrap(jnp.ones(3))


def axis_cases(name, call):
    """A layer that works along the axis `a`: absent, or with positional axes left over."""
    return {
        f"{name}: absent axis": Case(
            ValueError,
            (name, "the axes ('a',)", "['a'] are missing", "it has ('x',)", "RenameAxes"),
            lambda: call(ones(x=3)),
            lambda: call(pz_nn.RenameAxes("x", "a")(ones(x=3))).named_shape.keys(),
            call(ones(a=3)).named_shape.keys(),
        ),
        f"{name}: positional axes": Case(
            ValueError,
            (name, "positional axes of shape (3,)", '.tag("name", ...)'),
            lambda: call(positional()),
            lambda: call(positional().tag("a")).named_shape.keys(),
            call(ones(a=3)).named_shape.keys(),
        ),
    }


AXES = {
    **axis_cases("contract", lambda x: pz_nn.contract("a", x, ones(a=3))),
    **axis_cases("RenameAxes", pz_nn.RenameAxes("a", "c")),
    **axis_cases("Softmax", pz_nn.Softmax("a")),
    **axis_cases("Standardize", pz_nn.Standardize("a")),
    **axis_cases("RMSStandardize", pz_nn.RMSStandardize("a")),
    "sizes of a contracted axis": Case(
        ValueError,
        ("contract", "['b']", "left.named_shape={'a': 2, 'b': 3}", "right.named_shape={'b': 5}"),
        lambda: pz_nn.contract("b", A, ones(b=5)),
        lambda: pz_nn.contract("b", A, ones(b=3)),
        {"a": 2},
    ),
    "sizes of a bias": Case(
        ValueError,
        ("add", "axis 'f'", "size 4", "size 3", "{'f': 4}", "{'f': 3}", ".untag('f').tag('f_2')"),
        lambda: pz_nn.AddBias.from_config("b", KEY, {"f": 3})(ones(f=4)),
        lambda: ones(f=4) + ones(f=3).untag("f").tag("f_2"),
        {"f": 4, "f_2": 3},
    ),
    "repeated axis": Case(
        ValueError,
        ("RenameAxes", "once", "('a', 'a')", "Remove the repetition"),
        lambda: pz_nn.RenameAxes(("a", "a"), ("c", "d"))(A),
        lambda: pz_nn.RenameAxes(("a",), ("c",))(A),
        {"c": 2, "b": 3},
    ),
    "taken axis": Case(
        ValueError,
        ("RenameAxes", "['b'] would occur twice", "('a',) to ('b',)", "clashing axis as well"),
        lambda: pz_nn.RenameAxes("a", "b")(A),
        lambda: pz_nn.RenameAxes(("a", "b"), ("b", "a"))(A),
        {"b": 2, "a": 3},
    ),
}

# --- building ---------------------------------------------------------------------------------------


def linear_shape(*axes, **options):
    layer = pz_nn.Linear.from_config("L", None, *axes, **options)
    return type(layer).__name__


def initialised(initializer, **groups):
    kinds = ("input_axes", "output_axes", "parallel_axes", "convolution_spatial_axes")
    return initializer(KEY, **{kind: groups.get(kind, {}) for kind in kinds}, dtype=jnp.float32)


BUILDING = {
    "Linear: primed output axis is an output axis": Case(
        ValueError,
        ("Linear.from_config('L')", "['a_out']", "{'a': 5, 'a_out': 2}", "RenameAxes"),
        lambda: linear_shape({"a": 3}, {"a": 5, "a_out": 2}),
        lambda: linear_shape({"a": 3}, {"b": 5, "a_out": 2}),
        "Linear",
    ),
    "Linear: primed output axis is an input axis": Case(
        ValueError,
        ("Linear.from_config('L')", "['a_out']", "{'a': 3, 'a_out': 2}", "RenameAxes"),
        lambda: linear_shape({"a": 3, "a_out": 2}, {"a": 5}),
        lambda: linear_shape({"a": 3, "a_out": 2}, {"b": 5}),
        "Linear",
    ),
    "Linear: in place though renaming is off": Case(
        ValueError,
        ("Linear.from_config('L')", "rename_outputs_if_necessary=False", "['a']", "allow"),
        lambda: linear_shape({"a": 3}, {"a": 2}, rename_outputs_if_necessary=False),
        lambda: linear_shape({"a": 3}, {"a": 2}),
        "LinearInPlace",
    ),
    "Linear: axis in two groups": Case(
        ValueError,
        ("Linear.from_config('L')", "['b']", "parallel_axes={'b': 2}", "the one group"),
        lambda: linear_shape({"a": 3}, {"b": 2}, {"b": 2}),
        lambda: linear_shape({"a": 3}, {}, {"b": 2}),
        "Linear",
    ),
    "EmbeddingTable: vocabulary is an embedding axis": Case(
        ValueError,
        ("EmbeddingTable.from_config('E')", "'e'", "{'e': 3}", "another name"),
        lambda: pz_nn.EmbeddingTable.from_config("E", KEY, 2, {"e": 3}, vocabulary_axis="e"),
        lambda: pz_nn.EmbeddingTable.from_config("E", KEY, 2, {"e": 3}).embeddings.value,
        {"vocabulary": 2, "e": 3},
    ),
    "random initializer": Case(
        ValueError,
        ("['i']", "input_axes={'i': 2}", "output_axes={'i': 3}", "distinct names"),
        lambda: initialised(
            pz_nn.xavier_uniform_initializer, input_axes={"i": 2}, output_axes={"i": 3}
        ),
        lambda: initialised(
            pz_nn.xavier_uniform_initializer, input_axes={"i": 2}, output_axes={"i_out": 3}
        ),
        {"i": 2, "i_out": 3},
    ),
    "constant initializer": Case(
        ValueError,
        ("['i']", "input_axes={'i': 2}", "parallel_axes={'i': 3}", "distinct names"),
        lambda: initialised(pz_nn.zero_initializer, input_axes={"i": 2}, parallel_axes={"i": 3}),
        lambda: initialised(pz_nn.zero_initializer, input_axes={"i": 2}, parallel_axes={"p": 3}),
        {"i": 2, "p": 3},
    ),
    **{
        f"{combine.__name__}: no branch": Case(
            ValueError,
            (combine.__name__, "at least one branch", "`branches` is empty", "Identity()"),
            lambda combine=combine: combine([])(A),
            lambda combine=combine: combine([pz_nn.Identity()])(A),
            {"a": 2, "b": 3},
        )
        for combine in (pz_nn.BranchAndAddTogether, pz_nn.BranchAndMultiplyTogether)
    },
    "ConcatBranches: no branch": Case(
        ValueError,
        ("ConcatBranches", "at least one branch", "`branches` is empty", "Identity()"),
        lambda: pz_nn.ConcatBranches([], "a")(A),
        lambda: pz_nn.ConcatBranches([pz_nn.Identity()] * 2, "a")(A),
        {"a": 4, "b": 3},
    ),
}

# --- side inputs ------------------------------------------------------------------------------------

ROPE = pz_nn.ApplyRoPE("e", 100.0, "positions")
TOKENS = ones(s=3, e=4)


def rotated(positions, x=TOKENS, layer=ROPE):
    return layer(x, positions=positions)


ROTATED = {"s": 3, "e": 4}
SIDE_INPUTS = {
    "RoPE: embedding axis in the positions": Case(
        ValueError,
        ("ApplyRoPE", "embedding axis 'e'", "{'e': 3}", "{'s': 3, 'e': 4}", "Rename that axis"),
        lambda: rotated(nx.arange("e", 3)),
        lambda: rotated(pz_nn.RenameAxes("e", "s")(nx.arange("e", 3))),
        ROTATED,
    ),
    "RoPE: positional axes in the positions": Case(
        ValueError,
        ("ApplyRoPE", "positional axes", "(3,)", "Tag them first"),
        lambda: rotated(nx.wrap(jnp.arange(3))),
        lambda: rotated(nx.wrap(jnp.arange(3)).tag("s")),
        ROTATED,
    ),
    "RoPE: positions that are no named array": Case(
        TypeError,
        ("ApplyRoPE", "'positions'", "named array", 'wrap(positions, "seq")'),
        lambda: rotated(jnp.arange(3)),
        lambda: rotated(nx.wrap(jnp.arange(3), "s")),
        ROTATED,
    ),
    "RoPE: axis of the positions that the input lacks": Case(
        ValueError,
        ("ApplyRoPE", "['t']", "{'t': 3}", "{'s': 3, 'e': 4}", "Rename or drop"),
        lambda: rotated(nx.arange("t", 3)),
        lambda: rotated(pz_nn.RenameAxes("t", "s")(nx.arange("t", 3))),
        ROTATED,
    ),
    "RoPE: size of the positions": Case(
        ValueError,
        ("ApplyRoPE", "agree in size", "{'s': 5}", "{'s': 3, 'e': 4}", "one position for each"),
        lambda: rotated(nx.arange("s", 5)),
        lambda: rotated(nx.arange("s", 3)),
        ROTATED,
    ),
    "RoPE: odd size": Case(
        ValueError,
        ("ApplyRoPE", "even", "is 3", "{'s': 3, 'e': 3}", "ApplyRoPEToSubset"),
        lambda: rotated(nx.arange("s", 3), ones(s=3, e=3)),
        lambda: rotated(
            nx.arange("s", 3),
            ones(s=3, e=3),
            pz_nn.ApplyRoPEToSubset("e", 100.0, 2, "positions"),
        ),
        {"s": 3, "e": 3},
    ),
    "RoPE: scale below one": Case(
        ValueError,
        ("ApplyRoPE", "at least 1.0", "is 0.125", "give 8.0"),
        lambda: pz_nn.ApplyRoPE("e", 100.0, "positions", scale_factor=0.125),
        lambda: rotated(
            nx.arange("s", 3),
            layer=pz_nn.ApplyRoPE("e", 100.0, "positions", scale_factor=8.0),
        ),
        ROTATED,
    ),
    **{
        f"{type(layer).__name__}: missing side input": Case(
            KeyError,
            (type(layer).__name__, repr(key), f"model(x, {key}=...)"),
            lambda layer=layer: layer(ones(seq=2, kv_seq=2)),
            lambda layer=layer, key=key, value=value: layer(
                ones(seq=2, kv_seq=2), **{key: value}
            ).named_shape.keys(),
            {"seq": 2, "kv_seq": 2}.keys(),
        )
        for layer, key, value in [
            (pz_nn.ApplyRoPE("kv_seq", 9.0, "p"), "p", nx.arange("seq", 2)),
            (
                pz_nn.ApplyCausalAttentionMask(-1e9),
                "token_positions",
                nx.arange("seq", 2),
            ),
            (pz_nn.ApplyExplicitAttentionMask("mask", -1e9), "mask", nx.ones({"seq": 2}, bool)),
        ]
    },
}

# --- variables --------------------------------------------------------------------------------------

SLOTS, (WEIGHTS,) = unbind_params(LINEAR)
TWO = [parameter("w"), parameter("w")]


def two_layers(*names):
    axes = {"f": 3}
    return pz_nn.Sequential([pz_nn.Linear.from_config(n, None, axes, axes) for n in names])


def run_slots(layer):
    return layer(ones(f=3))


def checked_for_slots(model):
    pz_nn.assert_no_parameter_slots(model)
    return run_slots(model)


VARIABLES = {
    "reading a parameter's slot": Case(
        UnboundVariableError,
        ("ParameterSlot(label='net/query.weights')", "bind_variables(tree, variables)"),
        lambda: run_slots(SLOTS),
        lambda: run_slots(bind_variables(SLOTS, [WEIGHTS])),
        {"g": 2},
    ),
    "reading a state's slot": Case(
        UnboundVariableError,
        ("StateVariableSlot(label='s')", "bind_variables(tree, variables)"),
        lambda: StateVariableSlot("s").value,
        lambda: bind_variables(StateVariableSlot("s"), [StateVariable(5, label="s")]).value,
        5,
    ),
    "two parameters of one label": Case(
        VariableConflictError,
        ("ParameterSlot(label='w')", "root[0] and root[1]", "same object", "another label"),
        lambda: unbind_variables(TWO),
        lambda: len(unbind_variables([TWO[0], TWO[0], parameter("v")])[1]),
        2,
    ),
    "two slots of one label": Case(
        VariableConflictError,
        ("'same.weights'", "sublayers[0]", "sublayers[1]", "same object", "another name"),
        lambda: two_layers("same", "same").bind_variables([parameter("same.weights")]),
        lambda: len(
            unbind_params(
                two_layers("one", "two").bind_variables(
                    [parameter("one.weights"), parameter("two.weights")]
                )
            )[1]
        ),
        2,
    ),
    "unused variable": Case(
        ValueError,
        ("bind_variables", "ParameterSlot(label='x')", "allow_unused=True"),
        lambda: SLOTS.bind_variables([WEIGHTS, parameter("x")]),
        lambda: run_slots(SLOTS.bind_variables([WEIGHTS, parameter("x")], allow_unused=True)),
        {"g": 2},
    ),
    "repeated variable": Case(
        ValueError,
        ("bind_variables", "ParameterSlot(label='net/query.weights')", "each variable once"),
        lambda: SLOTS.bind_variables([WEIGHTS, WEIGHTS]),
        lambda: run_slots(SLOTS.bind_variables([WEIGHTS])),
        {"g": 2},
    ),
    "slots left in a model": Case(
        ValueError,
        ("assert_no_parameter_slots", "'net/query.weights'", "model.bind_variables(...)"),
        lambda: checked_for_slots(SLOTS),
        lambda: checked_for_slots(SLOTS.bind_variables([WEIGHTS])),
        {"g": 2},
    ),
}

# --- stacks and caches ------------------------------------------------------------------------------


def stacked(block, size=2):
    return pz_nn.LayerStack(block, "blocks", size)


def state(behavior, value):
    metadata = {} if behavior is None else {"layerstack_axes": {"blocks": behavior}}
    return StateVariable(value, label="count", metadata=metadata)


def counted(count, **side_inputs):
    """Runs a stack of two blocks that count, and gives their state."""
    stacked(CountCalls(count))(ones(f=1), **side_inputs)
    return count.value


def built(value, metadata=None, **options):
    """Builds and runs a stack whose blocks make a state variable."""

    def builder(init_base_rng):
        del init_base_rng
        return CountCalls(StateVariable(value, label="n", metadata=metadata))

    make = pz_nn.LayerStack.from_sublayer_builder
    stack = make(builder, options.pop("axis", "blocks"), 2, KEY, {}, **options)
    return stack(ones(f=1, **(value.named_shape if nx.is_namedarray(value) else {})))


class Odd(AbstractVariable):
    """A variable that is neither parameter nor state."""

    value = ones(f=2)

    def freeze(self):
        return ParameterValue("odd", self.value)

    def get_slot(self):
        return ParameterSlot("odd")

    def update(self, new_frozen_value):
        raise NotImplementedError


def stack_of_two(block):
    make = pz_nn.LayerStack.from_sublayer_builder
    return make(lambda init_base_rng: block, "blocks", 2, KEY, {})(ones(f=2))


ODD = pz_nn.Linear(Odd(), (), ())


def kept(block, x):
    return stacked(block)(x)


def saved(value):
    saving = state(SHARED, value)
    kept(Remember(saving), ones(f=2))
    return saving.value


OWN = state(PER_LAYER, ones(blocks=2))
SHARED_STATE = state(SHARED, jnp.array(0.0))
THREE = pz_nn.Linear(Parameter(label="w", value=ones(blocks=3, f=2)), (), ())

STACKS = {
    "state that says nothing": Case(
        ValueError,
        ("'count'", "'blocks'", "LayerStackVarBehavior.SHARED"),
        lambda: counted(state(None, ones())),
        lambda: counted(state(SHARED, ones())),
        {},
    ),
    "state that says it by a word": Case(
        ValueError,
        ("'count'", "'per_layer'", "LayerStackVarBehavior"),
        lambda: counted(state("per_layer", ones(blocks=2))),
        lambda: counted(state(PER_LAYER, ones(blocks=2))),
        {"blocks": 2},
    ),
    "shared state with the stack axis": Case(
        ValueError,
        ("'count'", "SHARED", "'blocks'", "{'blocks': 2}", "PER_LAYER"),
        lambda: counted(state(SHARED, ones(blocks=2))),
        lambda: counted(state(PER_LAYER, ones(blocks=2))),
        {"blocks": 2},
    ),
    "state per layer without the stack axis": Case(
        ValueError,
        ("'count'", "PER_LAYER", "{'f': 1}", "nx.stack(values, 'blocks')"),
        lambda: counted(state(PER_LAYER, ones(f=1))),
        lambda: counted(state(PER_LAYER, nx.stack([ones(f=1)] * 2, "blocks"))),
        {"blocks": 2, "f": 1},
    ),
    "state per layer without names": Case(
        ValueError,
        ("'count'", "PER_LAYER", "without names", "nx.stack(values, 'blocks')"),
        lambda: counted(state(PER_LAYER, jnp.zeros(2))),
        lambda: counted(state(PER_LAYER, nx.wrap(jnp.zeros(2), "blocks"))),
        {"blocks": 2},
    ),
    "state per layer in the side inputs": Case(
        ValueError,
        ("'count'", "PER_LAYER", "side inputs", "Remove it there"),
        lambda: counted(OWN, other=OWN),
        lambda: counted(OWN),
        {"blocks": 2},
    ),
    "another shared state in the side inputs": Case(
        ValueError,
        ("two different", "'count'", "the very same variable"),
        lambda: counted(SHARED_STATE, other=state(SHARED, jnp.array(0.0))),
        lambda: counted(SHARED_STATE, other=SHARED_STATE).shape,
        (),
    ),
    "two states of one label": Case(
        VariableConflictError,
        ("count", "same object", "another label"),
        lambda: kept(
            pz_nn.Sequential([CountCalls(state(SHARED, ones())) for _ in range(2)]), ones(f=1)
        ),
        lambda: kept(pz_nn.Sequential([CountCalls(state(SHARED, ones()))] * 2), ones(f=1)),
        {"f": 1},
    ),
    "other kind of variable": Case(
        ValueError,
        ("Parameters or StateVariables", "Odd", "freeze_variables(model)"),
        lambda: kept(ODD, ones(f=2)),
        lambda: kept(freeze_variables(ODD), ones(f=2)),
        {"f": 2},
    ),
    "variable in the argument": Case(
        TypeError,
        ("argument", "StateVariable", "side input, or freeze it"),
        lambda: kept(pz_nn.Identity(), [SHARED_STATE]),
        lambda: stacked(pz_nn.Identity())(ones(f=1), other=SHARED_STATE),
        {"f": 1},
    ),
    "builder: other kind of variable": Case(
        ValueError,
        ("from_sublayer_builder", "Parameters and StateVariables", "Odd", "variable.freeze()"),
        lambda: stack_of_two(ODD),
        lambda: stack_of_two(pz_nn.Linear(Odd().freeze(), (), ())),
        {"f": 2},
    ),
    "builder: state without names": Case(
        ValueError,
        ("from_sublayer_builder", "'n'", "named array", "nx.wrap(array, ...names)"),
        lambda: built(jnp.zeros(1)),
        lambda: built(nx.wrap(jnp.zeros(1), "g")),
        {"f": 1, "g": 1},
    ),
    "builder: state that says how it behaves": Case(
        ValueError,
        ("from_sublayer_builder", "'n'", "'blocks'", "is_shared_state"),
        lambda: built(ones(), {"layerstack_axes": {"blocks": SHARED}}),
        lambda: built(ones(), is_shared_state=lambda variable: variable.label == "n"),
        {"f": 1},
    ),
    "builder: the stack axis is there": Case(
        ValueError,
        ("from_sublayer_builder", "'blocks'", "{'blocks': 1}", "another axis name"),
        lambda: built(ones(blocks=1)),
        lambda: built(ones(blocks=1), axis="layers"),
        {"f": 1, "blocks": 1},
    ),
    "size of the stack axis": Case(
        ValueError,
        ("'blocks'", "size 2", "{'blocks': 3, 'f': 2}", "Change stack_axis_size"),
        lambda: stacked(THREE)(ones(f=2)),
        lambda: stacked(THREE, 3)(ones(f=2)),
        {"f": 2},
    ),
    "dtype of the argument": Case(
        TypeError,
        ("dtype of the argument", "float32", "bfloat16", "CastToDType"),
        lambda: kept(pz_nn.CastToDType(jnp.bfloat16), ones(f=2)),
        lambda: kept(
            pz_nn.Sequential([pz_nn.CastToDType(jnp.bfloat16), pz_nn.CastToDType(jnp.float32)]),
            ones(f=2),
        ),
        {"f": 2},
    ),
    "names of the argument": Case(
        ValueError,
        ("names and sizes of the argument", "f: 2", "g: 2", "inside the block"),
        lambda: kept(pz_nn.RenameAxes("f", "g"), ones(f=2)),
        lambda: kept(
            pz_nn.Sequential([pz_nn.RenameAxes("f", "g"), pz_nn.RenameAxes("g", "f")]), ones(f=2)
        ),
        {"f": 2},
    ),
    "sizes of a shared state": Case(
        ValueError,
        ("shared state variable 'count'", "f: 3", "f: 2"),
        lambda: saved(ones(f=3)),
        lambda: saved(ones(f=2)),
        {"f": 2},
    ),
}


UNCACHED = attention(
    "a", KEY, mask=pz_nn.ApplyCausalAttentionMask(-1e30, kv_positions_input_name="kv_positions")
)


def cached(tokens=3, index=0, cache_len=4, dtype=jnp.float32, **side_inputs):
    """Runs a caching attention layer whose cache has `index` entries already."""
    layer = pz_nn.KVCachingAttention.from_uncached(
        UNCACHED, "seq", cache_len, {"heads": H, "p": P}, "end", cache_dtype=dtype
    )
    positions = nx.arange("seq", index, index + tokens)
    return layer(
        ones(seq=tokens, f=F),
        token_positions=positions,
        kv_positions=nx.arange("seq", cache_len),
        **{"end": index, **side_inputs},
    )


def cached_without_an_index():
    layer = pz_nn.KVCachingAttention.from_uncached(UNCACHED, "seq", 4, {"heads": H, "p": P}, "end")
    return layer(ones(seq=3, f=F), token_positions=nx.arange("seq", 3))


CACHES = {
    "dtype of a cache": Case(
        TypeError,
        ("KVCachingAttention", "float32", "bfloat16", "cache_dtype=float32"),
        lambda: cached(dtype=jnp.bfloat16),
        lambda: cached(dtype=jnp.float32),
        {"seq": 3, "f": F},
    ),
    "more tokens than places": Case(
        TypeError,
        ("KVCachingAttention", "5 new tokens", "4 places", "cache_len=5"),
        lambda: cached(5),
        lambda: cached(5, cache_len=5),
        {"seq": 5, "f": F},
    ),
    "no room": Case(
        pz_nn.KVCacheOverflowError,
        ("KVCachingAttention", "3 new", "4 places", "2 are filled", "cache_len=5"),
        lambda: cached(index=2),
        lambda: cached(index=2, cache_len=5),
        {"seq": 3, "f": F},
    ),
    "no index": Case(
        KeyError,
        ("KVCachingAttention", "'end'", "model(x, end=...)"),
        cached_without_an_index,
        cached,
        {"seq": 3, "f": F},
    ),
}

CASES = {
    **LAYERS,
    **STRUCTURE,
    **AXES,
    **BUILDING,
    **SIDE_INPUTS,
    **VARIABLES,
    **STACKS,
    **CACHES,
}


@pytest.mark.parametrize("name", CASES)
def test_error_says_what_to_do_and_that_works(name):
    check(CASES[name])
