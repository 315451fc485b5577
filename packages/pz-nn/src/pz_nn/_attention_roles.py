"""Which axis plays which role in the two einsums of attention, read off their specs.

With heads h that queries, keys and values share, heads g of the queries alone, features p and r:

    logits[h, g, token, key] = Σ_p query[h, g, token, p] · key[h, key, p]
    mixed[h, g, token, r]    = Σ_key weights[h, g, token, key] · value[h, key, r]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from pz_nn._einsum import as_mapping
from pz_nn.contraction import NamedEinsum


class AttentionRoles(NamedTuple):
    """Axes by their roles; see `FusedMixValues` for what each is."""

    token_axis: str
    kv_token_axis: str
    shared_head_axes: tuple[str, ...]
    query_head_axes: tuple[str, ...]
    feature_axis: str
    value_axis: str


Specs = Sequence[dict[str, str]]


def attention_roles(to_logits: NamedEinsum, mix: NamedEinsum) -> AttentionRoles | None:
    """The roles of the axes of two einsums; None if these are not the einsums of attention."""
    logits_specs, mixing_specs = _specs(to_logits), _specs(mix)
    if len(logits_specs) != 3 or len(mixing_specs) != 3:
        return None
    query, key, logits = logits_specs
    summed = set(query.values()) & set(key.values()) - set(logits.values())
    tokens = [axis for axis, index in key.items() if index not in query.values()]
    features = [axis for axis, index in query.items() if index in summed]
    kv_tokens = [axis for axis, index in logits.items() if index in {key[t] for t in tokens}]
    shared = tuple(axis for axis in query if axis in key and axis not in (*tokens, *features))
    values = [axis for axis in mixing_specs[1] if axis not in (*shared, *tokens)]
    if any(len(found) != 1 for found in (tokens, features, kv_tokens, values)):
        return None
    known = (*shared, *tokens, *features)
    roles = AttentionRoles(
        tokens[0],
        kv_tokens[0],
        shared,
        tuple(axis for axis in query if axis not in known),
        features[0],
        values[0],
    )
    for_logits, for_mixing = _einsums_with(roles)
    if _canonical(logits_specs) != _canonical(for_logits):
        return None
    return roles if _canonical(mixing_specs) == _canonical(for_mixing) else None


def _specs(einsum: NamedEinsum) -> Specs:
    return [as_mapping(spec) for spec in (*einsum.input_axes, einsum.output_axes)]


def _einsums_with(roles: AttentionRoles) -> tuple[Specs, Specs]:
    """The specs of both einsums as the module states them, heads with their own names as indices."""
    shared = {axis: f"head {axis}" for axis in roles.shared_head_axes}
    heads = {**shared, **{axis: f"head {axis}" for axis in roles.query_head_axes}}
    logits = {**heads, roles.token_axis: "token", roles.kv_token_axis: "key"}
    queries = {**heads, roles.token_axis: "token"}
    keys = {**shared, roles.token_axis: "key"}
    feature, value = {roles.feature_axis: "feature"}, {roles.value_axis: "value"}
    return (
        [{**queries, **feature}, {**keys, **feature}, logits],
        [logits, {**keys, **value}, {**queries, **value}],
    )


def _canonical(specs: Specs) -> list[dict[str, int]]:
    """Specs with numbers for indices, in order of appearance: equal for einsums that do the same."""
    numbers: dict[str, int] = {}
    return [
        {axis: numbers.setdefault(spec[axis], len(numbers)) for axis in sorted(spec)}
        for spec in specs
    ]
