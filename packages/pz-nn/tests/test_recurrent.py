import jax
import jax.numpy as jnp
import numpy as np
import pytest
from nn_helpers import assert_close, axis_order, draw, named, raises, raw

from pz_core.random_stream import RandomStream
from pz_core.struct import pytree_dataclass
from pz_core.variables import Parameter, StateVariable, freeze_variables, variable_jit
from pz_named import named_axes as nx
from pz_nn.combinators import ConcatBranches
from pz_nn.layer import Layer
from pz_nn.recurrent import GRUCell, LSTMCell, ScanOver


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def cell_of(cls, key, dtype=jnp.float32):
    cell = cls.from_config("r", key, {"f": 3}, {"h": 4}, initializer=draw, dtype=dtype)
    biases = [cell.input.sublayers[-1].bias]
    if cls is GRUCell:
        biases.append(cell.recurrent.sublayers[-1].bias)
    for seed, bias in enumerate(biases):
        bias.value = named(seed, bias.value.named_shape, dtype)
    return freeze_variables(cell)


def gru_oracle(cell, xs, h):
    """xs (batch, time, features), h (batch, hidden)."""
    w = raw(cell.input.sublayers[0].weights.value, "gates", "f", "h")
    b = raw(cell.input.sublayers[1].bias.value)
    u = raw(cell.recurrent.sublayers[0].weights.value, "gates", "h", "h_out")
    c = raw(cell.recurrent.sublayers[-1].bias.value, "gates", "h")
    outputs = []
    for x in xs.swapaxes(0, 1):
        i, s = x @ w + b[:, None], h @ u + c[:, None]
        r, z = sigmoid(i[0] + s[0]), sigmoid(i[1] + s[1])
        n = np.tanh(i[2] + r * s[2])
        h = (1 - z) * n + z * h
        outputs.append(h)
    return np.stack(outputs, 1), h


def lstm_oracle(cell, xs, h):
    w = raw(cell.input.sublayers[0].weights.value, "gates", "f", "h")
    b = raw(cell.input.sublayers[1].bias.value)
    u = raw(cell.recurrent.sublayers[0].weights.value, "gates", "h", "h_out")
    c, outputs = np.zeros_like(h), []
    for x in xs.swapaxes(0, 1):
        i, f, g, o = x @ w + b[:, None] + h @ u
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        outputs.append(h)
    return np.stack(outputs, 1), (h, c)


CELLS = [(GRUCell, gru_oracle), (LSTMCell, lstm_oracle)]


@pytest.mark.smoke
@pytest.mark.parametrize("cls, oracle", CELLS)
def test_scan_against_loops(key, cls, oracle):
    cell = cell_of(cls, key)
    x = named(0, {"n": 2, "t": 5, "f": 3})
    y, state = ScanOver(cell, "t", return_state=True)(x)
    assert axis_order(y) == ["t", "n", "h"]
    expected, final = oracle(cell, raw(x), np.zeros((2, 4)))
    assert_close(raw(y, "n", "t", "h"), expected)
    jax.tree.map(
        lambda a, b: assert_close(raw(a, "n", "h"), b), state, final, is_leaf=nx.is_namedarray
    )
    backwards = ScanOver(cell, "t", reverse=True, unroll=2)(x)
    expected, _ = oracle(cell, raw(x)[:, ::-1], np.zeros((2, 4)))
    assert_close(raw(backwards, "n", "t", "h"), expected[:, ::-1])
    compiled = jax.jit(lambda la, v: la(v))(ScanOver(cell, "t"), x)
    assert_close(raw(compiled), raw(y), 1e-6)


@pytest.mark.parametrize("cls, oracle", CELLS)
def test_continuing_from_a_state_equals_one_run(key, cls, oracle):
    layer = ScanOver(cell_of(cls, key), "t", return_state=True)
    x = named(0, {"n": 2, "t": 5, "f": 3})
    whole, _ = layer(x)
    first, state = layer(x[{"t": slice(0, 2)}])
    second, _ = layer(x[{"t": slice(2, 5)}], recurrent_state=state)
    assert_close(
        raw(nx.concatenate([first, second], "t"), "t", "n", "h"), raw(whole, "t", "n", "h")
    )


def test_bidirectional(key):
    cell = cell_of(GRUCell, key)
    layer = ConcatBranches([ScanOver(cell, "t"), ScanOver(cell, "t", reverse=True)], "h")
    assert layer(named(0, {"t": 5, "f": 3})).named_shape == {"t": 5, "h": 8}


@pytest.mark.parametrize("cls, oracle", CELLS)
def test_dtypes_and_edges(key, cls, oracle):
    low = cell_of(cls, key, jnp.bfloat16)
    x = named(0, {"t": 3, "f": 3}, jnp.bfloat16)
    y = ScanOver(low, "t")(x)
    assert y.dtype == jnp.bfloat16
    assert_close(raw(y), oracle(low, raw(x)[None], np.zeros((1, 4)))[0][0], 5e-2)
    # Weights wider than the input widen the state once, before the loop.
    assert ScanOver(cell_of(cls, key), "t")(x).dtype == jnp.float32
    assert ScanOver(low, "t")(x[{"t": slice(0, 0)}]).named_shape == {"t": 0, "h": 4}
    with raises(ValueError, "ScanOver", "'time'"):
        ScanOver(low, "time")(x)
    with raises(ValueError, cls.__name__, "'f'"):
        ScanOver(low, "t")(x[{"f": 0}])


@pytree_dataclass
class NoisyCounter(Layer):
    """A cell with a state variable, a parameter and a random stream."""

    count: object
    weight: object

    def __call__(self, argument, /, **side_inputs):
        state, x = argument
        self.count.value = self.count.value + 1
        noise = nx.wrap(jax.random.uniform(side_inputs["random_stream"].next_key()))
        return state + x * self.weight.value, noise

    def initial_state(self, x):
        return nx.wrap(jnp.zeros(()))


def test_state_variables_and_random_streams_are_carried(key):
    cell = NoisyCounter(StateVariable(0, label="n"), Parameter(label="w", value=2.0))
    stream = RandomStream.from_base_key(key)
    layer = ScanOver(cell, "t", return_state=True)
    noise, total = layer(nx.ones({"t": 3}), random_stream=stream)
    assert cell.count.value == 3
    assert stream.offset.value == 3
    assert raw(total) == 6.0
    expected = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(3)]
    assert_close(raw(noise), expected, 0)
    again, _ = variable_jit(lambda la, x, s: la(x, random_stream=s))(
        layer, nx.ones({"t": 3}), RandomStream.from_base_key(key)
    )
    assert_close(raw(again), expected, 0)
    assert cell.count.value == 6


def test_eager_calls_compile_once(key):
    traces = []

    @pytree_dataclass
    class Traced(Layer):
        def __call__(self, argument, /, **_side_inputs):
            traces.append(1)
            state, x = argument
            return state, x

        def initial_state(self, x):
            return nx.wrap(jnp.zeros(()))

    layer = ScanOver(Traced(), "t")
    layer(nx.ones({"t": 3}), recurrent_state=nx.wrap(jnp.zeros(())))
    first = len(traces)
    layer(nx.ones({"t": 3}), recurrent_state=nx.wrap(jnp.zeros(())))
    assert len(traces) == first > 0
    # The guard can fail: another shape is traced again.
    layer(nx.ones({"t": 4}), recurrent_state=nx.wrap(jnp.zeros(())))
    assert len(traces) > first


@pytest.mark.parametrize("cls", [GRUCell, LSTMCell])
def test_the_axis_of_gates_is_the_cells_own(cls):
    with raises(ValueError, f"{cls.__name__}.from_config('r')", "['gates']"):
        cls.from_config("r", None, {"f": 3}, {"gates": 4})
