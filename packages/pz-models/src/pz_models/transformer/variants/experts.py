"""Feed-forward parts that are mixtures of experts: their configuration, builder and places in files.

A block's feed-forward part is then `pz_nn.mixture_of_experts.MixtureOfExperts`, whose experts are
the gated kind that the dense blocks of the same model have.

    experts = ExpertsConfig(count=8, per_token=2, hidden_dim=14336)
    config = LlamalikeTransformerConfig(..., experts=experts)

References: Jiang et al., Mixtral of Experts (2024); Yang et al., Qwen3 (2025).
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax

from pz_models.parameter_plan import StoredParameter
from pz_models.transformer.model_parts import TransformerFeedForward
from pz_models.transformer.variants._llamalike_parts import GATES
from pz_nn.mixture_of_experts import MixtureOfExperts

if TYPE_CHECKING:
    from pz_models.transformer.variants.llamalike_common import LlamalikeTransformerConfig

__all__ = [
    "ExpertsConfig",
    "build_experts_feedforward",
    "fused_expert_parameters",
    "single_expert_parameters",
]


@dataclasses.dataclass(frozen=True)
class ExpertsConfig:
    """How the feed-forward parts of a model are made of experts.

    Attributes:
      count: Experts of each block.
      per_token: How many of them each token uses: those of the largest router probabilities,
        which are a softmax in float32 over all.
      hidden_dim: Width of each expert.
      normalise_weights: Whether the probabilities of the chosen are divided by their sum.
      dense_blocks: Indices of blocks with an ordinary feed-forward part instead.
    """

    count: int
    per_token: int
    hidden_dim: int
    normalise_weights: bool = True
    dense_blocks: tuple[int, ...] = ()


def build_experts_feedforward(
    name: str,
    init_base_rng: jax.Array | None,
    experts: ExpertsConfig,
    config: LlamalikeTransformerConfig,
) -> TransformerFeedForward:
    """A feed-forward part that routes each token through a few experts.

    It records no load-balancing loss, so that the model has no state; to train the router, replace
    the layer's `load_balancing_loss` by a state variable.

    Args:
      name: Name of the part, which prefixes its labels.
      init_base_rng: Key of the model, or None for parameter slots.
      experts: Number and size of the experts.
      config: The model's configuration.
    """
    mixture = MixtureOfExperts.from_config(
        name,
        init_base_rng,
        {"embedding": config.embedding_dim},
        {"neurons": experts.hidden_dim},
        experts=experts.count,
        top_k=experts.per_token,
        activation_fn=GATES[config.mlp_variant],
        normalise_weights=experts.normalise_weights,
        dtype=config.parameter_dtype,
    )
    return TransformerFeedForward([dataclasses.replace(mixture, load_balancing_loss=None)])


def single_expert_parameters(
    config: LlamalikeTransformerConfig, key: str, gate: str, value: str, out: str
) -> list[StoredParameter]:
    """Parameters of one block where each expert has tensors of its own, as in files.

    Args:
      config: The model's configuration, with experts.
      key: What the keys of a block's feed-forward part begin with.
      gate: What an expert's gating projection is called.
      value: What its value projection is called.
      out: What its output projection is called.
    """
    experts, stream, wide = _sizes(config)
    found = [_router(config, key)]
    for label, part, axes in (
        ("gating_linear", gate, wide | stream),
        ("value_linear", value, wide | stream),
        ("out_linear", out, stream | wide),
    ):
        found += [
            StoredParameter(
                f"mlp/{label}.weights",
                f"{key}.experts.{index}.{part}.weight",
                axes,
                element_of={"experts": (index, experts.count)},
            )
            for index in range(experts.count)
        ]
    return found


def fused_expert_parameters(config: LlamalikeTransformerConfig, key: str) -> list[StoredParameter]:
    """Parameters of one block where each kind of projection is one tensor, as in memory.

    Args:
      config: The model's configuration, with experts.
      key: What the keys of a block's feed-forward part begin with.
    """
    experts, stream, wide = _sizes(config)
    all_experts = {"experts": experts.count}
    width = experts.hidden_dim
    found = [_router(config, key)]
    for label, start in (("gating_linear", 0), ("value_linear", width)):
        found.append(
            StoredParameter(
                f"mlp/{label}.weights",
                f"{key}.experts.gate_up_proj",
                all_experts | wide | stream,
                view=(experts.count, 2 * width, config.embedding_dim),
                region=(slice(None), slice(start, start + width)),
            )
        )
    down = f"{key}.experts.down_proj"
    return [*found, StoredParameter("mlp/out_linear.weights", down, all_experts | stream | wide)]


def _sizes(
    config: LlamalikeTransformerConfig,
) -> tuple[ExpertsConfig, dict[str, int], dict[str, int]]:
    assert config.experts is not None
    stream, wide = {"embedding": config.embedding_dim}, {"neurons": config.experts.hidden_dim}
    return config.experts, stream, wide


def _router(config: LlamalikeTransformerConfig, key: str) -> StoredParameter:
    experts, stream, _ = _sizes(config)
    axes = {"experts": experts.count} | stream
    return StoredParameter("mlp/router.weights", f"{key}.gate.weight", axes)
