"""The outer parts that every transformer here is made of: model, block, feed-forward.

A model is a `TransformerLM` around a body of ordinary layers. Blocks and feed-forward parts are
`Sequential`s whose types only say what they are for, so that selectors find them:

    pz.select(model).at_instances_of(TransformerBlock)

Shapes of a built model: tokens {seq, ...} -> logits {seq, ..., vocabulary}.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from pz_core.struct import pytree_dataclass
from pz_named import named_axes as nx
from pz_nn.grouping import Sequential
from pz_nn.layer import Layer

__all__ = [
    "TransformerBlock",
    "TransformerFeedForward",
    "TransformerLM",
    "TransformerMetadata",
]


@dataclasses.dataclass
class TransformerMetadata:
    """Sizes of a model's activations, for transformations that must know them in advance.

    Attributes:
      common_head_axes: Head axes that queries, keys and values share, with sizes.
      query_only_head_axes: Head axes that only queries have.
      embedding_dim: Size of the residual stream.
      projection_dim: Size of one head.
      mlp_hidden_dim: Width of the feed-forward part.
      vocab_size: Number of tokens.
      activation_dtype: Dtype of activations and caches.
      config: The configuration that the model was built from, where there is one.
      huggingface_config: What `config.json` said, for a model that was loaded; it is written back
        when the model is saved.
    """

    common_head_axes: dict[str, int]
    query_only_head_axes: dict[str, int]
    embedding_dim: int
    projection_dim: int
    mlp_hidden_dim: int
    vocab_size: int
    activation_dtype: Any
    config: Any = None
    huggingface_config: dict[str, Any] | None = None


@pytree_dataclass(has_implicitly_inherited_fields=True)
class TransformerFeedForward(Sequential):
    """The part of a block that works on each position alone."""


@pytree_dataclass(has_implicitly_inherited_fields=True)
class TransformerBlock(Sequential):
    """One block: usually a residual attention part and a residual feed-forward part."""

    def treescope_color(self) -> tuple[str, str]:
        """A teal, with a lighter tint inside."""
        return "oklch(0.785 0.103 188.7)", "oklch(0.785 0.103 188.7 / 0.25)"


@pytree_dataclass
class TransformerLM(Layer):
    """A transformer language model: tokens in, logits out.

    Attributes:
      body: The layers.
      metadata: Sizes of the activations.
    """

    body: Layer
    metadata: TransformerMetadata = dataclasses.field(metadata={"pytree_node": False})

    def __call__(
        self, tokens: Any, /, *, token_positions: Any = None, **side_inputs: Any
    ) -> nx.NamedArrayBase:
        """Scores every next token at every position.

        Args:
          tokens: Named array of token ids, {seq} and any batch axes.
          token_positions: Position of each token, {seq} and any batch axes, -1 at padding. By
            default 0, 1, 2, … for every row; padding is not guessed.
          **side_inputs: Given to every layer. `rope_length`, the length that length-dependent
            rotary frequencies assume, is this call's length unless given.

        Returns:
          Logits, the axes of `tokens` and vocabulary.

        Raises:
          TypeError: `tokens` is not a named array.
          ValueError: `tokens` has no axis `seq`.
        """
        if not nx.is_namedarray(tokens):
            raise TypeError(
                "TransformerLM: tokens must be a named array with the axis 'seq'; received"
                f" {type(tokens).__name__}. Name its axes: wrap(tokens, 'seq') or"
                " wrap(tokens, 'batch', 'seq')."
            )
        if "seq" not in tokens.named_shape:
            raise ValueError(
                "TransformerLM: tokens must have the axis 'seq', but have"
                f" named_shape={tokens.named_shape} and positional_shape={tokens.positional_shape}."
                " Name the token axis: tokens.tag('seq')."
            )
        length = tokens.named_shape["seq"]
        if token_positions is None:
            token_positions = nx.arange("seq", length)
        side_inputs.setdefault("rope_length", length)
        logits: nx.NamedArrayBase = self.body(
            tokens, token_positions=token_positions, **side_inputs
        )
        return logits
