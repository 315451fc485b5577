"""The base class of every layer: a pytree with one positional input.

A layer is a struct (a frozen dataclass that JAX sees as a tree) which can be called. Everything that
configures it stands in its fields; everything that varies from call to call comes in as the argument
or as a keyword *side input*, which each layer may use or ignore and every combinator passes on.

    @pytree_dataclass
    class Double(Layer):
        def __call__(self, argument, /, **side_inputs):
            return argument + argument
"""

from __future__ import annotations

import abc
import typing
from collections.abc import Iterable
from typing import Any, Self

from pz_core.struct import Struct
from pz_core.variables import (
    AbstractVariable,
    AbstractVariableValue,
    bind_variables,
    freeze_variables,
)

__all__ = ["Layer"]


class Layer(Struct, abc.ABC):
    """Abstract base class of layers.

    A concrete layer is decorated with `pz_core.struct.pytree_dataclass` and defines `__call__`;
    without either, making an instance is a `TypeError`.

    The contract of `__call__`:

    * one positional-only input (any pytree) and any keyword side inputs; names it does not know are
      ignored, so a side input may have any name;
    * no branching on modes: stochastic and disabled dropout are two classes, exchanged with a selector;
    * axes it does not name are batch axes.
    """

    @abc.abstractmethod
    def __call__(self, argument: Any, /, **side_inputs: Any) -> Any:
        """Runs the layer.

        Args:
            argument: The input, any pytree.
            **side_inputs: Context shared by the whole model (token positions, a random stream, …).

        Returns:
            The output, any pytree.
        """

    def bind_variables(
        self,
        variables: Iterable[AbstractVariable | AbstractVariableValue],
        allow_unused: bool = False,
    ) -> Self:
        """Returns this layer with the slots of `variables` filled by exactly those objects.

        Args:
            variables: Mutable variables or frozen values; each replaces every slot it matches.
            allow_unused: Whether variables without a slot here are accepted; by default they are an
                error.

        Returns:
            A new layer. Slots that nothing matches stay.

        Raises:
            ValueError: If two variables have one slot, or one has none and `allow_unused` is false.
        """
        return typing.cast(Self, bind_variables(self, variables, allow_unused=allow_unused))

    @typing.final
    def stateless_call(
        self,
        variable_values: Iterable[AbstractVariableValue],
        argument: Any,
        /,
        **side_inputs: Any,
    ) -> tuple[Any, tuple[AbstractVariableValue, ...]]:
        """Runs the layer as a pure function of explicit variable values.

        The implementation is just: freeze what is still bound here, make a mutable copy of each given
        value, bind the copies into layer, argument and side inputs at once, call, freeze the copies.

        Args:
            variable_values: Frozen values for slots in the layer, the argument or the side inputs.
                Consumed once.
            argument: The input.
            **side_inputs: The side inputs. Variables already bound in them (or in `argument`) are not
                frozen: writes to those are seen outside.

        Returns:
            The output, and the final value of each variable in the order given.

        Raises:
            TypeError: If something in `variable_values` is not a frozen value.
            ValueError: If two values have one slot, or one has no slot anywhere.
        """
        copies = tuple(_mutable_copy(value) for value in variable_values)
        layer, argument, side_inputs = bind_variables(
            (freeze_variables(self), argument, side_inputs), copies
        )
        output = layer(argument, **side_inputs)
        return output, tuple(copy.freeze() for copy in copies)


def _mutable_copy(value: Any) -> AbstractVariable:
    if not isinstance(value, AbstractVariableValue):
        raise TypeError(
            "stateless_call: variable_values must hold frozen variable values, not "
            f"{type(value).__name__}. Freeze the variable first: pass `variable.freeze()`, or take "
            "the values from `unbind_variables(model, freeze=True)`."
        )
    return value.unfreeze_as_copy()
