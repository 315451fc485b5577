"""Training, finetuning, checkpointing and saving against hand-written JAX, optax and torch.

The models are those of `bench_models`: the 135M-parameter Llama with the same weights on each side.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import bench_models
import handwritten_llama
import jax
import jax.numpy as jnp
import numpy as np
import optax
from harness import Row, compare, counted

from pz_core.selectors import select
from pz_core.struct import Struct, pytree_dataclass
from pz_core.variables import Parameter, bind_variables, freeze_params, unbind_params
from pz_models.transformer import model_parts
from pz_named import named_axes as nx
from pz_nn.layer_stack import LayerStack
from pz_nn.linear_and_affine import Linear
from pz_toolshed import lora, saving
from pz_toolshed.basic_training import StatefulTrainer
from pz_toolshed.gradient_checkpointing import Checkpointed
from pz_toolshed.losses import next_token_loss

__all__ = ["PROGRAMS"]

SHAPE = bench_models.SHAPE
BATCH, SEQ, RANK = 4, 128, 8


@functools.cache
def _tokens() -> jax.Array:
    return jax.random.randint(jax.random.key(1), (BATCH, SEQ), 0, SHAPE.vocabulary)


def _named_tokens() -> Any:
    return nx.wrap(_tokens()).tag("batch", "seq")


# Keeping only what matrix products made halves the memory of a step, and on CPU its cost falls too:
# recomputing the rest is cheaper than writing it and reading it again.
POLICY = jax.checkpoint_policies.dots_saveable


def _model(stacked: bool = True) -> Any:
    stacks = select(bench_models._ours(stacked)).at_instances_of(LayerStack)
    return stacks.apply(lambda stack: dataclasses.replace(stack, checkpoint=POLICY))


def _copied_model(stacked: bool = True) -> Any:
    """A model with parameters of its own: training writes into them."""
    slots, params = unbind_params(_model(stacked))
    return bind_variables(
        slots, [Parameter(label=p.label, value=jax.tree.map(jnp.copy, p.value)) for p in params]
    )


def _loss(model: Any, state: Any, rng: Any, tokens: Any) -> Any:
    del rng
    positions = nx.wrap(jnp.arange(SEQ)).tag("seq")
    logits = model(tokens, token_positions=positions)
    return next_token_loss(logits, tokens).mean, state, {}


def _handwritten_loss(weights: Any, tokens: jax.Array, policy: Any = POLICY) -> jax.Array:
    logits = handwritten_llama.forward.__wrapped__(weights, tokens, shape=SHAPE, policy=policy)
    return optax.softmax_cross_entropy_with_integer_labels(logits[:, :-1], tokens[:, 1:]).mean()


class _Handwritten:
    """A training loop over some of the weights."""

    def __init__(self, trained: Any, rest: Any, merge: Callable[[Any, Any], Any]):
        self._optimizer = optax.adam(1e-5)
        self._state = (trained, self._optimizer.init(trained))
        self._rest = rest

        def step(state: Any, rest: Any, tokens: jax.Array) -> Any:
            trained, opt_state = state
            loss, grads = jax.value_and_grad(lambda t: _handwritten_loss(merge(t, rest), tokens))(
                trained
            )
            updates, opt_state = self._optimizer.update(grads, opt_state, trained)
            return loss, (optax.apply_updates(trained, updates), opt_state)

        self._step = jax.jit(step, donate_argnums=0)

    def __call__(self) -> Any:
        loss, self._state = self._step(self._state, self._rest, _tokens())
        return loss


def _trainer_step(model: Any) -> Callable[[], Any]:
    trainer = StatefulTrainer.build(
        jax.random.key(0), model, optax.adam(1e-5), _loss, donate_states=True
    )
    tokens = _named_tokens()
    return lambda: trainer.step_with_loss(tokens=tokens)[0]


def _torch_step() -> Callable[[], Any]:
    import torch

    model = bench_models._huggingface().train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-5)
    tokens = torch.from_numpy(np.asarray(_tokens(), np.int64))

    def step() -> float:
        optimizer.zero_grad()
        loss = model(tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return step


def training_step() -> list[Row]:
    ours = _trainer_step(_copied_model())
    weights = {k: jnp.copy(v) for k, v in bench_models._weights().items()}
    theirs = _Handwritten(weights, None, lambda t, _: t)
    np.testing.assert_allclose(ours(), theirs(), rtol=1e-4)
    peers: dict[str, Callable[[], Any]] = {"hand-written JAX + optax": theirs}
    try:
        peers["torch"] = _torch_step()
    except ImportError:
        pass
    targets = {"hand-written JAX + optax": 1.05, "torch": 1.15}
    name = "training step, 135M, batch 4 x 128"
    rows = compare(name, ours, peers, targets=targets, max_s=180)
    del ours  # and its 1.6 GB
    separate = _trainer_step(_copied_model(stacked=False))
    return rows + compare(f"{name}, separate blocks", separate, peers, targets=targets, max_s=180)


# --- finetuning ------------------------------------------------------------------------------------

_MATMUL = handwritten_llama._matmul
_ADAPTED = ("query", "key", "value", "output", "gate", "up", "down")


def _adapted_matmul(x: jax.Array, weight: Any) -> jax.Array:
    if not isinstance(weight, tuple):
        return _MATMUL(x, weight)
    base, a, b = weight
    return _MATMUL(x, base) + _MATMUL(_MATMUL(x, a.T), b.T)


def finetuning_step() -> list[Row]:
    sites = select(freeze_params(_model())).at_instances_of(model_parts.TransformerBlock)
    ours = _trainer_step(
        lora.loraify_linears_in_selection(sites, rank=RANK, init_base_rng=jax.random.key(0))
    )
    weights = bench_models._weights()
    adapters = {}
    for name in _ADAPTED:
        layers, out, size = weights[name].shape
        adapters[name] = (
            jnp.full((layers, size, RANK), 0.01, jnp.float32),
            jnp.zeros((layers, RANK, out)),
        )
    theirs = _Handwritten(
        adapters, weights, lambda t, w: {**w, **{n: (w[n], *t[n]) for n in _ADAPTED}}
    )
    name = "hand-written JAX + optax"
    with mock.patch.object(handwritten_llama, "_matmul", _adapted_matmul):
        np.testing.assert_allclose(ours(), theirs(), rtol=1e-4)
        return compare(
            "LoRA step, rank 8 on all linears, 135M",
            ours,
            {name: theirs},
            targets={name: 1.05},
            max_s=120,
        )


# --- the trainer's own work ------------------------------------------------------------------------


@pytree_dataclass
class _ManyParameters(Struct):
    linears: list[Any]


def step_overhead() -> list[Row]:
    count = 272
    linears = [
        Linear.from_config(f"l{i}", jax.random.key(0), {"a": 8}, {"b": 8}) for i in range(count)
    ]

    def loss(model: Any, state: Any, rng: Any, x: Any) -> Any:
        del rng
        arrays = [linear.weights.value.data_array for linear in model.linears]
        return sum(jnp.sum(array**2) * x for array in arrays), state, {}

    optimizer = optax.adam(1e-3)
    x = jnp.float32(1)
    trainer = StatefulTrainer.build(
        jax.random.key(0), _ManyParameters(linears), optimizer, loss, stop_if_not_finite=False
    )
    values = [jnp.copy(linear.weights.value.data_array) for linear in linears]

    @jax.jit
    def compiled(params: Any, mu: Any, nu: Any, step: Any, x: Any) -> Any:
        grads = jax.grad(lambda ps: sum(jnp.sum(p**2) * x for p in ps))(params)
        state = (optax.ScaleByAdamState(step, mu, nu), optax.EmptyState())
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state[0].mu, state[0].nu, state[0].count

    raw = [(values, [v * 0 for v in values], [v * 0 for v in values], jnp.int32(0))]

    def theirs() -> Any:
        raw[0] = compiled(*raw[0], x)
        return raw[0][0]

    def ours() -> Any:
        trainer.step(x=x)
        return linears[-1].weights.value

    return compare(
        f"step() with {count} parameters, Adam",
        ours,
        {"compiled, raw leaves": theirs},
        targets={"compiled, raw leaves": 1.5},
        max_s=40,
    )


# --- checkpointing ---------------------------------------------------------------------------------


def _peak_bytes(function: Callable[..., Any], *args: Any) -> float:
    analysis = jax.jit(function).lower(*args).compile().memory_analysis()
    return float(analysis.temp_size_in_bytes)


def checkpointing_memory() -> list[Row]:
    tokens = _named_tokens()

    def ours(checkpointed: bool) -> float:
        model = bench_models._ours(True)
        if checkpointed:
            model = (
                select(model)
                .at_instances_of(model_parts.TransformerBlock)
                .apply(lambda block: Checkpointed(block, prevent_cse=False))
            )
        slots, params = unbind_params(model, freeze=True)
        return _peak_bytes(
            jax.grad(lambda ps: _loss(bind_variables(slots, ps), None, None, tokens)[0]), params
        )

    def theirs(checkpointed: bool) -> float:
        policy = jax.checkpoint_policies.nothing_saveable if checkpointed else None
        gradient = jax.grad(functools.partial(_handwritten_loss, policy=policy))
        return _peak_bytes(gradient, bench_models._weights(), _tokens())

    plain_ours, plain_theirs = ours(False), theirs(False)
    name = "hand-written jax.checkpoint"
    rows = counted(
        "backward pass, peak bytes, blocks checkpointed",
        ours(True),
        {name: theirs(True)},
        unit="bytes",
        targets={name: 1.05},
    )
    return rows + counted(
        "the same, nothing checkpointed", plain_ours, {"hand-written": plain_theirs}, unit="bytes"
    )


# --- files -----------------------------------------------------------------------------------------


def save_and_load() -> list[Row]:
    import safetensors.numpy

    model = bench_models._ours(True)
    arrays = {k: np.asarray(v) for k, v in bench_models._weights().items()}
    folder = pathlib.Path(tempfile.mkdtemp())
    plain = folder / "plain.safetensors"

    def saved_by_library() -> None:
        """A file on the disk on both sides: ours waits for it, so the peer does."""
        safetensors.numpy.save_file(arrays, plain)
        descriptor = os.open(plain, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)

    def loaded_by_library() -> dict[str, jax.Array]:
        return {k: jnp.asarray(v) for k, v in safetensors.numpy.load_file(plain).items()}

    options: dict[str, Any] = {"targets": {"safetensors.numpy": 1 / 0.8}, "min_rounds": 15}
    try:
        rows = compare(
            "save 135M parameters, fsync included",
            lambda: saving.save(folder / "ours", model) and None,
            {"safetensors.numpy": saved_by_library},
            max_s=120,
            **options,
        )
        rows += compare(
            "load 135M parameters",
            lambda: unbind_params(saving.load(folder / "ours", model), freeze=True)[1],
            {"safetensors.numpy": loaded_by_library},
            max_s=60,
            **options,
        )
    finally:
        shutil.rmtree(folder)
    return rows


PROGRAMS: dict[str, Callable[[], list[Row]]] = {
    "step overhead": step_overhead,
    "save and load": save_and_load,
    "checkpointing": checkpointing_memory,
    "LoRA step": finetuning_step,
    "training step": training_step,
}
