"""The parts of a standard attention layer: multi-head, multi-query and grouped-query."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax

from pz_nn.basic_ops import Softmax, TanhSoftCap
from pz_nn.contraction import NamedEinsum
from pz_nn.grouping import Sequential
from pz_nn.linear_and_affine import Affine, ConstantRescale, Linear
from pz_nn.side_inputs import TakeSideInput
from pz_nn.standardization import RMSLayerNorm


@dataclasses.dataclass(frozen=True)
class HeadAxes:
    """Axes of the heads.

    Attributes:
        common: Axes that queries, keys and values have.
        query_only: Axes that only the queries have.
    """

    common: dict[str, int]
    query_only: dict[str, int]


def head_axes(user: str, num_heads: int, num_kv_heads: int) -> HeadAxes:
    """How heads are named: `heads`, `query_heads` beside a single key/value head, or both levels.

    Raises:
        ValueError: If the number of heads is no multiple of that of key/value heads.
    """
    if num_kv_heads < 1 or num_heads % num_kv_heads or num_heads < 1:
        raise ValueError(
            f"{user}: num_heads must be a positive multiple of num_kv_heads, but num_heads={num_heads} "
            f"and num_kv_heads={num_kv_heads}. Use num_kv_heads={num_heads} for multi-head attention, 1 "
            "for multi-query attention, or a divisor."
        )
    if num_heads == num_kv_heads:
        return HeadAxes({"heads": num_heads}, {})
    if num_kv_heads == 1:
        return HeadAxes({}, {"query_heads": num_heads})
    return HeadAxes({"head_groups": num_kv_heads}, {"query_heads": num_heads // num_kv_heads})


@dataclasses.dataclass(frozen=True)
class AttentionConfig:
    """Settings of a standard attention layer; see `Attention.from_config`."""

    embedding_dim: int
    heads: HeadAxes
    projection_dim: int
    mask: Any
    rope: Any
    query_key_norm: bool
    use_bias: bool
    use_output_bias: bool
    query_scale: float
    logit_soft_cap: float | None
    logit_bias: Any
    softmax: Any
    context_input_name: str | None
    embedding_axis: str
    seq_axis: str
    kv_seq_axis: str
    dtype: Any


def build_parts(
    name: str, init_base_rng: jax.Array | None, config: AttentionConfig
) -> dict[str, Any]:
    """The five parts of `Attention`, by field."""
    common, query_only = config.heads.common, config.heads.query_only
    projection = {"projection": config.projection_dim}
    embedding = {config.embedding_axis: config.embedding_dim}

    def project(which: str, axes: dict[str, int]) -> Any:
        kind: Any = Affine if config.use_bias else Linear
        built = kind.from_config(
            f"{name}/{which}", init_base_rng, embedding, axes, dtype=config.dtype
        )
        parts: list[Any] = [built]
        if which != "query" and config.context_input_name is not None:
            parts.insert(0, TakeSideInput(config.context_input_name))
        if config.query_key_norm and which in ("query", "key"):
            norm = RMSLayerNorm.from_config(
                f"{name}/{which}_norm", init_base_rng, projection, dtype=config.dtype
            )
            parts.append(norm)
        if config.rope is not None and which in ("query", "key"):
            parts.append(config.rope)
        if which == "query":
            parts.append(ConstantRescale(config.query_scale))
        return parts[0] if len(parts) == 1 else Sequential(parts)

    group = {axis: f"group_{axis}" for axis in common}
    alone = {axis: f"query_{axis}" for axis in query_only}
    feature = {"projection": "feature"}
    # The order in which XLA makes the products, so that none is transposed: paired axes come first.
    weights = {**group, config.seq_axis: "token", **alone, config.kv_seq_axis: "key"}
    keys = {config.seq_axis: "key", **group, **feature}
    queries = {config.seq_axis: "token", **group, **alone, **feature}
    to_attn: list[Any] = [NamedEinsum((queries, keys), weights)]
    if config.logit_soft_cap is not None:
        to_attn.append(TanhSoftCap(config.logit_soft_cap))
    to_attn += [part for part in (config.logit_bias, config.mask) if part is not None]
    to_attn.append(config.softmax or Softmax(config.kv_seq_axis))
    kind: Any = Affine if config.use_output_bias else Linear
    return {
        "input_to_query": project("query", {**common, **query_only, **projection}),
        "input_to_key": project("key", {**common, **projection}),
        "input_to_value": project("value", {**common, **projection}),
        "query_key_to_attn": Sequential(to_attn),
        "attn_value_to_output": Sequential(
            [
                NamedEinsum((weights, keys), queries),
                kind.from_config(
                    f"{name}/output",
                    init_base_rng,
                    {**common, **query_only, **projection},
                    embedding,
                    dtype=config.dtype,
                ),
            ]
        ),
    }
