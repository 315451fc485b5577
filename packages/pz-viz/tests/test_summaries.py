"""Summaries against counts made by hand, on every kind of model."""

import dataclasses
import io
import os
import re
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from viz_samples import HOSTILE, Chain, Linear, Span, chain, linear

import pz_named as nx
import pz_viz
from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import Parameter, StateVariable, freeze_params, unbind_params
from pz_viz import summaries


@pytree_dataclass
class Dense(Struct):
    """Multiplies by a matrix, named or not."""

    weights: Parameter

    def __call__(self, x):
        return x @ self.weights.value


@pytree_dataclass
class Stacked(Struct):
    """Calls its parts one after the other."""

    parts: list

    def __call__(self, x):
        for part in self.parts:
            x = part(x)
        return x


def dense(label, inputs, outputs):
    return Dense(Parameter(label=label, value=jnp.ones((inputs, outputs))))


@pytest.mark.smoke
def test_text_of_a_small_model():
    shared = linear("shared").weights
    model = Chain([Linear(shared), Linear(shared), Span(jnp.ones(3, jnp.int32), 2)])
    rows = [re.split(" {2,}", line) for line in pz_viz.summary(model).text.splitlines()]
    spec = "float32(| features:2, features_out:2)"
    first = ".sublayers[0].weights"
    assert rows == [
        ["Summary"],
        ["path", "class", "shape", "elements", "bytes", "role"],
        [first, "Linear", spec, "4", "16 B", "trainable"],
        [first.replace("0", "1"), "Linear", f"{spec} shared with {first}", "0", "0 B", "trainable"],
        [".sublayers[2].lo", "Span", "int32(3)", "3", "12 B", "array"],
        ["total", "2 arrays", "7", "28 B"],
    ]


def test_rows_are_grouped_to_a_depth():
    model = {"a": chain(3), "b": linear("x", size=4)}
    rows = pz_viz.summary_rows(model, depth=1)
    assert [(row.path, row.holder, row.arrays, row.count) for row in rows] == [
        ("['a']", "Chain", 3, 12),
        ("['b']", "Linear", 1, 16),
    ]
    [row] = pz_viz.summary_rows(model, depth=0)
    assert (row.path, row.count, row.bytes) == ("", 28, 112)
    assert len(pz_viz.summary_rows(model)) == 4


def test_a_block_whose_arrays_are_all_shared_says_so():
    shared = linear("shared").weights
    [_, row] = pz_viz.summary_rows([Linear(shared), Linear(shared)], depth=1)
    assert (row.arrays, row.count, row.shared_with) == (0, 0, "[0].weights")
    assert (
        "shared with [0].weights" in pz_viz.summary([Linear(shared), Linear(shared)], depth=1).text
    )


def test_roles_of_bound_frozen_unbound_and_state():
    model = Chain([linear("a"), StateVariable(jnp.zeros(2), label="s")])
    roles = [row.roles for row in pz_viz.summary_rows(model)]
    assert roles == [("trainable",), ("state",)]
    frozen = freeze_params(model)
    assert [row.roles for row in pz_viz.summary_rows(frozen)] == [("frozen",), ("state",)]
    slots, _ = unbind_params(model)
    row = pz_viz.summary_rows(slots)[0]
    assert (row.roles, row.count) == (("slot",), 0)
    assert "unknown" in pz_viz.summary(slots).text


def test_abstract_models_have_sizes_and_nothing_is_computed():
    frozen = freeze_params(chain(2))
    abstract = jax.eval_shape(lambda: frozen)
    concrete, imagined = pz_viz.summary_rows(frozen), pz_viz.summary_rows(abstract)
    assert [(r.path, r.shape, r.bytes) for r in concrete] == [
        (r.path, r.shape, r.bytes) for r in imagined
    ]

    def inspect(model):
        pz_viz.summary(model, depth=1)
        return model

    assert not jax.make_jaxpr(inspect)(frozen).eqns


def test_deleted_arrays_and_random_keys_are_counted():
    gone = jnp.ones(3) + 0
    gone.delete()
    rows = pz_viz.summary_rows({"gone": gone, "key": jax.random.key(0), "n": np.ones(2, np.int8)})
    assert [row.count for row in rows] == [3, 1, 2]
    assert rows[2].bytes == 2


def test_invalid_named_arrays_say_so():
    broken = dataclasses.replace(nx.wrap(jnp.ones((2,))).tag("a"), data_array="gone")
    assert "invalid" in pz_viz.summary(Span(broken, 1)).text


def test_operations_of_each_block():
    model = Stacked([dense("a", 8, 16), dense("b", 16, 4), Span(jnp.ones(1), 2)])
    model = Stacked(model.parts[:2])
    rows = pz_viz.summary_rows(model, depth=1, inputs=(jax.ShapeDtypeStruct((32, 8), jnp.float32),))
    assert [row.flops for row in rows] == [2 * 32 * 8 * 16, 2 * 32 * 16 * 4]
    [whole] = pz_viz.summary_rows(model, depth=0, inputs=(jnp.ones((32, 8)),))
    assert whole.flops == 2 * 32 * 8 * 16 + 2 * 32 * 16 * 4
    text = pz_viz.summary(model, depth=1, inputs=(jnp.ones((32, 8)),)).text
    assert "operations" in text
    assert "8.19e+03" in text
    assert text.splitlines()[-2].split()[-1] == "1.23e+04"  # the whole model
    assert "floating-point operations of one call" in text
    assert "≥" not in text


@pytree_dataclass
class Looped(Struct):
    """Multiplies by each matrix of a stack, in a loop; `unroll` turns at once."""

    weights: Any
    unroll: int = dataclasses.field(default=1, metadata={"pytree_node": False})

    def __call__(self, x):
        return jax.jit(self._run)(x)

    def _run(self, x):
        return jax.lax.scan(lambda x, w: (x @ w, None), x, self.weights, unroll=self.unroll)[0]


@pytree_dataclass
class Nested(Struct):
    """Runs a looped block in a loop of its own."""

    inner: Looped

    def __call__(self, x):
        return jax.lax.fori_loop(0, 5, lambda _, x: self.inner(x), x)


@pytree_dataclass
class Unknown(Struct):
    """Multiplies until the result is large."""

    weights: Any

    def __call__(self, x):
        return jax.lax.while_loop(lambda x: jnp.sum(x) < 100, lambda x: x @ self.weights, x)


@pytest.mark.smoke
@pytest.mark.parametrize("unroll", [1, 2, 3, 7, 9])
def test_a_loop_counts_every_turn(unroll):
    [row] = pz_viz.summary_rows(
        Looped(jnp.ones((7, 8, 8)), unroll), depth=0, inputs=(jnp.ones((4, 8)),)
    )
    assert not row.flops_is_lower_bound
    assert row.flops == pytest.approx(7 * 2 * 4 * 8 * 8, rel=0.01)  # the loop itself counts


def test_a_loop_in_a_loop_counts_every_turn_of_both():
    model = Nested(Looped(jnp.ones((7, 8, 8))))
    [row] = pz_viz.summary_rows(model, depth=0, inputs=(jnp.ones((4, 8)),))
    assert row.flops == pytest.approx(5 * 7 * 2 * 4 * 8 * 8, rel=0.01)


def test_a_loop_of_unknown_length_is_marked():
    model = Stacked([dense("a", 8, 8), Unknown(jnp.ones((8, 8)))])
    text = pz_viz.summary(model, depth=1, inputs=(jnp.ones((4, 8)),)).text
    first, second, total = (line.split()[-1] for line in text.splitlines()[2:5])
    assert not first.startswith("≥")
    assert second.startswith("≥")
    assert total.startswith("≥")
    assert "known only when it runs" in text


def test_blocks_that_are_not_called_have_no_operations():
    model = Stacked([dense("a", 2, 2)])
    unused = Span(model, dense("b", 2, 2))
    rows = pz_viz.summary_rows(Stacked([model, model]), depth=1, inputs=(jnp.ones((1, 2)),))
    assert rows[0].flops == 8
    assert len(pz_viz.summary_rows(unused, depth=1)) == 2


@pytest.mark.parametrize(
    "kwargs, match",
    [
        ({"depth": -1}, r"depth=-1; it counts structs below the root"),
        ({"inputs": (1,)}, r"inputs need a depth, such as depth=1"),
    ],
)
def test_bad_arguments_are_errors(kwargs, match):
    with pytest.raises(ValueError, match=match):
        pz_viz.summary(chain(1), **kwargs)


def test_long_tables_are_cut_with_a_row_that_adds_up(monkeypatch):
    monkeypatch.setattr(summaries, "MOST_ROWS", 5)
    text = pz_viz.summary(chain(20)).text
    assert "… 15 more rows" in text
    assert text.splitlines()[-1].split()[:4] == ["total", "20", "arrays", "80"]


def test_hostile_paths_stay_text():
    model = {text: nx.wrap(jnp.ones(2)).tag(text) for text in HOSTILE}
    view = pz_viz.summary(model, title=HOSTILE[0])
    assert "<script>" not in view.body
    assert "\u202e" not in view.body + view.text


def test_rich_tables_hold_the_same(monkeypatch):
    console = pytest.importorskip("rich.console")
    printed = io.StringIO()
    console.Console(width=200, file=printed).print(pz_viz.rich_summary({"[red]": jnp.ones(2)}))
    assert "['[red]']" in printed.getvalue()
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(ImportError, match=r'pip install "pz-viz\[rich\]"'):
        pz_viz.rich_summary({})


SHARDED = """
import jax, jax.numpy as jnp, pz_named as nx, pz_viz, treescope
from jax.sharding import NamedSharding, PartitionSpec, Mesh
import numpy as np
mesh = Mesh(np.array(jax.devices()).reshape(2, 2), ("x", "y"))
def put(spec):
    return jax.device_put(jnp.ones((4, 8)), NamedSharding(mesh, PartitionSpec(*spec)))
model = {"named": nx.wrap(put(("x", "y"))).tag("a", "b"), "plain": put((None, "y")), "all": put(())}
rows = {row.path: row.sharding for row in pz_viz.summary_rows(model)}
assert rows == {"['all']": "replicated", "['named']": "a:x, b:y", "['plain']": "1:y"}, rows
assert "sharding" in pz_viz.summary(model).text
text = treescope.render_to_text(model["named"])
assert "nonzero:32" in text, text
large = jax.device_put(jnp.ones((1024, 512)), NamedSharding(mesh, PartitionSpec("x", "y")))
from treescope.external import jax_support
with jax_support.summarization_threshold.set_scoped({"default": None}):
    assert "nonzero:524_288" in treescope.render_to_text(nx.wrap(large).tag("a", "b"))
print("sharded ok")
"""


def test_sharding_over_several_devices():
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "sharded ok" in done.stdout, done.stderr
