"""The example at the head of each module runs, on a small model of its kind."""

import ast
import functools
import importlib
import pathlib
import textwrap
import types
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import toolshed_models as tm

import pz_toolshed
from pz_core.selectors import select
from pz_core.struct import pytree_dataclass
from pz_core.variables import freeze_params
from pz_named.named_axes import wrap
from pz_nn.basic_ops import Elementwise, Softmax
from pz_nn.combinators import Residual
from pz_nn.embeddings import EmbeddingLookup, EmbeddingTable
from pz_nn.grouping import NamedGroup, Sequential
from pz_nn.layer import Layer
from pz_nn.linear_and_affine import ConstantRescale, Linear

SOURCES = pathlib.Path(pz_toolshed.__file__).parent
MODULES = sorted(path.stem for path in SOURCES.glob("[!_]*.py"))
PROSE = "(prose)"
# Formulas, whose terms are words; everything else has to be Python.
FORMULAS = {
    "basic_training": "trainable values = optax",
    "lora": "y = x W + (alpha / rank)",
    "dora": "y = m * x (W",
}
EXTRAS = {"unflaxify": "flax.linen", "nnx_modules": "flax.nnx", "equinox_modules": "equinox"}
TRAINING = (
    "basic_training",
    "metric_writers",
    "mixed_precision",
    "parameter_averaging",
    "saving",
    "trainable",
    "training_loop",
)


def blocks_of(name):
    """The indented blocks of a module's docstring that are no formulas."""
    text = ast.get_docstring(ast.parse((SOURCES / f"{name}.py").read_text()))
    lines = [line if line.startswith("    ") or not line else PROSE for line in text.splitlines()]
    blocks = [textwrap.dedent(block).strip() for block in "\n".join(lines).split(PROSE)]
    return [block for block in blocks if block and FORMULAS.get(name, PROSE) not in block]


@pytree_dataclass
class LanguageModel(Layer):
    body: Sequential

    def __call__(self, tokens, /, **side_inputs):
        return self.body(tokens, **side_inputs)


@functools.cache
def language_model():
    table = EmbeddingTable.from_config("net/embedder", tm.key(), 7, {"embedding": 4})
    blocks = [tm.block(tm.key(), name=f"net/block_{i}/mlp") for i in range(4)]
    head = Linear.from_config("net/lm_head", tm.key(), {"embedding": 4}, {"vocabulary": 7})
    return LanguageModel(Sequential([EmbeddingLookup(table), *blocks, Softmax("embedding"), head]))


def mean_loss(model, state, rng, tokens):
    return model(tokens).canonicalize().data_array.mean(), state, {}


def names_for(name):
    """What the examples take as given."""
    tokens = wrap(jnp.array([[1, 2, 3], [4, 5, 6]])).tag("batch", "seq")
    model = language_model()
    scope: dict[str, Any] = {
        "jax": jax, "jnp": jnp, "select": select, "freeze_params": freeze_params,
        "Sequential": Sequential, "ConstantRescale": ConstantRescale, "Softmax": Softmax,
        # Kinds of layers that pz_models has, and what stands for them in the small model.
        "TransformerBlock": Residual, "Attention": Residual, "TransformerFeedForward": NamedGroup,
        "model": model, "tokens": tokens, "positions": wrap(jnp.arange(3)).tag("seq"),
        "matrices": wrap(jnp.ones((2, 3, 3))).tag("batch", "row", "column"),
        "other_layer": Elementwise(lambda inputs: inputs.args[0]),
        "layer": Elementwise(lambda inputs: inputs.args[0]), "x": jnp.ones((2, 4)),
    }  # fmt: skip
    if name == "peft_format":
        from pz_toolshed.lora import loraify_linears_in_selection

        heads = select(model).at_instances_of(Linear).where(lambda x: "vocabulary" in x.output_axes)
        scope["adapted_model"] = loraify_linears_in_selection(heads, 2, tm.key())
    return scope | names_for_training(name, model, tokens) | names_for_conversion(name)


def names_for_training(name, model, tokens):
    if name == "optimizers":
        pytest.importorskip("optax")
    if name not in TRAINING:
        return {}
    optax = pytest.importorskip("optax")
    pytest.importorskip("tqdm")
    from pz_toolshed.basic_training import StatefulTrainer
    from pz_toolshed.saving import save
    from pz_toolshed.training_loop import fit

    trainer = StatefulTrainer.build(tm.key(), model, optax.sgd(0.1), mean_loss)
    batches = [{"tokens": tokens}] * 2
    if name == "basic_training":
        model = tm.mlp([2, 2])
        xs = tm.random_input(batch=3, features=2)
        batches = [types.SimpleNamespace(xs=xs, ys=xs)] * 2
    return {
        "optax": optax, "optimizer": optax.sgd(0.1), "StatefulTrainer": StatefulTrainer,
        "trainer": trainer, "loss_fn": mean_loss, "model": model, "fit": fit, "save": save,
        "batches": (lambda: batches) if name == "training_loop" else batches,
        "training_batches": lambda: batches * 50,  # as far as the first evaluation
        "token_metrics": lambda model, tokens: {"loss": (mean_loss(model, 0, 0, tokens)[0], 1)},
    } | ({"JsonLinesWriter": lambda path: lambda event: None} if name == "training_loop" else {})  # fmt: skip


def names_for_conversion(name):
    if name not in EXTRAS:
        return {}
    library = pytest.importorskip(EXTRAS[name])
    if name == "equinox_modules":
        layers = [library.nn.Linear(4, 4, key=tm.key()) for _ in range(2)]
        return {"module": library.nn.Sequential(layers), "x": jnp.ones(4)}
    if name == "nnx_modules":
        head = library.Linear(4, 4, rngs=library.Rngs(0))
        module = type("M", (library.Module,), {"__call__": lambda self, x: self.head(x)})()
        module.head = head
        return {"module": module}

    class Mlp(library.Module):
        @library.compact
        def __call__(self, x):
            return library.Dense(2)(library.Dense(3)(x))

    module = Mlp()
    return {"module": module, "variables": module.init(tm.key(), jnp.ones((2, 4)))}


@pytest.mark.parametrize("name", MODULES)
def test_examples_run(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    make_mesh = jax.make_mesh  # of one device here
    monkeypatch.setattr(jax, "make_mesh", lambda _, names: make_mesh((1, 1), names))
    blocks = blocks_of(name)
    assert blocks
    scope = names_for(name)
    module = importlib.import_module(f"pz_toolshed.{name}")
    scope |= {n: getattr(module, n) for n in module.__all__} | {name: module}
    if name == "checkpoint_errors":
        scope["saving"] = importlib.import_module("pz_toolshed.saving")
        scope["saving"].save("runs/1", tm.mlp([2, 2]))
    for block in blocks:
        exec(compile(block, f"docstring of {name}", "exec"), scope)
