"""Rules from axis names to mesh axes for the models people train."""

from __future__ import annotations

__all__ = ["transformer_rules"]


def transformer_rules(
    *,
    data: str | tuple[str, ...] | None = None,
    tensor: str | tuple[str, ...] | None = None,
    fully_sharded: bool = False,
    grouped_heads: bool = True,
) -> dict[str, str | tuple[str, ...]]:
    """Rules for the axis names that the transformer families share.

    Args:
      data: Mesh axis for data parallelism: spreads `batch`.
      tensor: Mesh axis for tensor parallelism: spreads the hidden units of feed-forward layers,
        the heads of attention layers and the vocabulary, each within one layer.
      fully_sharded: Spread the parameters over the data axis too (along `embedding`); each layer
        collects its parameters when it runs.
      grouped_heads: For grouped-query attention, spread the groups (`head_groups`), so that the
        heads of a group stay with their keys; False spreads the heads within each group
        (`query_heads`), for models with fewer groups than devices.

    Returns:
      Rules for `name_to_name_sharding`, `shard_model` and `sharded_init`. With both `data` and
      `fully_sharded`, give them to parameters only: activations have `batch` and `embedding`,
      which cannot share a mesh axis.

    Raises:
      ValueError: If `fully_sharded` is asked for without a data axis.
    """
    if fully_sharded and data is None:
        raise ValueError(
            "transformer_rules(fully_sharded=True): parameters are spread over the data axis, so "
            'it must be named, e.g. data="data".'
        )
    rules: dict[str, str | tuple[str, ...]] = {}
    if data is not None:
        rules["batch"] = data
    if fully_sharded and data is not None:
        rules["embedding"] = data
    if tensor is not None:
        heads = ("heads", "head_groups") if grouped_heads else ("heads", "query_heads")
        rules |= {name: tensor for name in ("neurons", "vocabulary", *heads)}
    return rules
