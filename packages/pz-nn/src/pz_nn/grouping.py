"""Layers that run other layers in order, and checks that stand between them.

    Sequential([Linear.from_config(...), Elementwise(jax.nn.relu), Linear.from_config(...)])

Subclassing `Sequential` to give a group a role (`class TransformerBlock(Sequential)`) is the main way
to build a model: the subclass adds a name and a `from_config`, never a new `__call__`.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import jax

from pz_core.colors import color_from_string
from pz_core.struct import pytree_dataclass
from pz_core.tree_util import tree_flatten_exactly_one_level
from pz_named.shapecheck import check_structure
from pz_nn._display import GREY, class_color, tinted
from pz_nn.layer import Layer

__all__ = [
    "CheckStructure",
    "CheckedSequential",
    "Identity",
    "NamedGroup",
    "Sequential",
    "inline_anonymous_sequentials",
    "inline_groups",
    "is_anonymous_sequential",
    "is_sequential_or_named",
]

Tree = TypeVar("Tree")


def _run_in_order(sublayers: Sequence[Any], argument: Any, side_inputs: dict[str, Any]) -> Any:
    for index, sublayer in enumerate(sublayers):
        with jax.named_scope(str(index)):
            argument = sublayer(argument, **side_inputs)
    return argument


@pytree_dataclass
class Sequential(Layer):
    """Runs its sublayers in order, each on the output of the one before.

    An empty group is the identity. Every sublayer gets the same side inputs.

    Attributes:
        sublayers: The layers, or any callables of the same calling form.

    Example:
        >>> Sequential([lambda x, **_: x + 1, lambda x, **_: x * 2])(3)
        8
    """

    sublayers: list[Any]

    @typing.final
    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the sublayers."""
        return _run_in_order(self.sublayers, argument, side_inputs)

    def treescope_color(self) -> str | tuple[str, str]:
        """Grey, or the colour of the subclass."""
        return tinted(GREY if type(self) is Sequential else class_color(self))

    def role_note(self) -> str | None:
        """What a subclass with a role of its own is underneath."""
        return None if type(self) is Sequential else "Sequential"


@typing.final
@pytree_dataclass
class NamedGroup(Layer):
    """A `Sequential` with a name, for display and for profiles.

    Attributes:
        name: The name; a JAX name scope of this name is open while the sublayers run.
        sublayers: The layers.
    """

    name: str = dataclasses.field(metadata={"pytree_node": False})
    sublayers: Sequence[Any]

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the sublayers."""
        with jax.named_scope(self.name):
            return _run_in_order(self.sublayers, argument, side_inputs)

    def treescope_color(self) -> str | tuple[str, str]:
        """The colour of the name."""
        return tinted(color_from_string(self.name))


@pytree_dataclass
class CheckedSequential(Layer):
    """A `Sequential` that checks the structure of what goes in and what comes out.

    Dimension variables solved on the input are known on the output, so one `**var("batch")` in both
    ties the batch axes together. Checks cost nothing in compiled code.

    Attributes:
        input_like: Structure that the input must have.
        output_like: Structure that the output must have.
        sublayers: The layers.
    """

    input_like: Any = dataclasses.field(
        metadata={"pytree_node": False, "treescope_always_collapse": True}
    )
    output_like: Any = dataclasses.field(
        metadata={"pytree_node": False, "treescope_always_collapse": True}
    )
    sublayers: list[Any]

    @typing.final
    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Checks the input, runs the sublayers, checks the output."""
        dimensions = check_structure(
            argument,
            self.input_like,
            error_prefix="Error while checking the input of a checked sequential:\n",
        )
        output = _run_in_order(self.sublayers, argument, side_inputs)
        check_structure(
            output,
            self.output_like,
            known_vars=dimensions,
            error_prefix="Error while checking the output of a checked sequential:\n",
        )
        return output

    def treescope_color(self) -> str | tuple[str, str]:
        """Grey, or the colour of the subclass with a grey inside."""
        return GREY if type(self) is CheckedSequential else (class_color(self), GREY)

    def role_note(self) -> str | None:
        """What a subclass with a role of its own is underneath."""
        return None if type(self) is CheckedSequential else "CheckedSequential"


@pytree_dataclass
class Identity(Layer):
    """Returns its input."""

    @typing.final
    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Returns the input."""
        return argument

    def treescope_color(self) -> str | tuple[str, str]:
        """Grey."""
        return tinted(GREY)


@typing.final
@pytree_dataclass
class CheckStructure(Layer):
    """Checks the structure of its input and returns it unchanged.

    Attributes:
        expected: Structure that the input must have.
    """

    expected: Any

    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Checks the input and returns it.

        Raises:
            StructureMismatchError: If the input does not match.
        """
        check_structure(argument, self.expected, error_prefix="Error in CheckStructure:\n")
        return argument

    def treescope_color(self) -> str | tuple[str, str]:
        """Grey."""
        return GREY


def is_sequential_or_named(tree: Any) -> bool:
    """Whether `tree` is one of the three group classes, or of a subclass."""
    return isinstance(tree, Sequential | CheckedSequential | NamedGroup)


def is_anonymous_sequential(tree: Any) -> bool:
    """Whether `tree` is exactly a `Sequential`, not a subclass with a role of its own."""
    return type(tree) is Sequential


def inline_groups(
    tree: Tree,
    parent_filter: Callable[[Any], bool],
    child_filter: Callable[[Any], bool],
) -> Tree:
    """Splices groups that stand directly inside other groups into their parents.

    Works from the innermost group outwards, so chains collapse completely. The root stays, and so does
    a group whose parent is no group (`Residual.delta`, an item of a dict).

    Args:
        tree: Any pytree.
        parent_filter: Called with a group; whether groups inside it may be spliced.
        child_filter: Called with a group inside such a parent; whether it is spliced. The names of
            spliced named groups and the checks of spliced checked groups are lost.

    Returns:
        The rewritten tree.
    """
    one_level = tree_flatten_exactly_one_level(tree)
    if one_level is None:
        return tree
    keyed_children, treedef = one_level
    rewritten: Any = treedef.unflatten(
        [inline_groups(child, parent_filter, child_filter) for _, child in keyed_children]
    )
    if not (is_sequential_or_named(rewritten) and parent_filter(rewritten)):
        return typing.cast(Tree, rewritten)
    spliced: list[Any] = []
    for child in rewritten.sublayers:
        if is_sequential_or_named(child) and child_filter(child):
            spliced.extend(child.sublayers)
        else:
            spliced.append(child)
    return typing.cast(Tree, dataclasses.replace(rewritten, sublayers=spliced))


def inline_anonymous_sequentials(tree: Tree) -> Tree:
    """Splices every plain `Sequential` that stands directly inside another group into its parent.

    Args:
        tree: Any pytree.

    Returns:
        The rewritten tree, which computes the same.
    """
    return inline_groups(
        tree, parent_filter=is_sequential_or_named, child_filter=is_anonymous_sequential
    )
