"""Named arrays: a positional array whose axes may have names.

Every axis of a named array is either positional (it has an index) or named. Operations act on
positional axes and are vectorised over names, so a function written for one vector works for every
batch, head or layer axis around it. `untag` makes names positional, `tag` names positions:

    >>> import jax.numpy as jnp
    >>> import pz_named as nx
    >>> x = nx.wrap(jnp.arange(6.0).reshape(2, 3)).tag("batch", "feature")
    >>> x.untag("feature").sum().named_shape
    {'batch': 2}
    >>> (x + nx.arange("feature", 3)).named_shape
    {'batch': 2, 'feature': 3}

There are two representations. A `NamedArray` keeps positional axes first and names after them; a
`NamedArrayView` refers to data of any layout, so that `untag` and `tag` never move data. The base
class makes both and so shares this module, which is longer than others for it; what operations do
stands in the mixins.
"""

from __future__ import annotations

import abc
import collections
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeGuard

import jax
import jax.numpy as jnp
import numpy as np

from pz_named._array_methods import ArrayMethods
from pz_named._at import At
from pz_named._layout import (
    Layout,
    axis_positions,
    is_size,
    named_shape_text,
    prefix_layout,
    rule_broken_by_name,
    view_layout,
)
from pz_named._naming_methods import NamingMethods
from pz_named._operators import NamedOperators
from pz_named._packing import as_jax, pack, register_makers, transposed
from pz_named._quantile_methods import QuantileMethods
from pz_named._reduction_methods import ReductionMethods
from pz_named._text import one_line
from pz_named.axis_names import AxisName

__all__ = ["NamedArray", "NamedArrayBase", "NamedArrayView", "is_namedarray", "wrap"]


class NamedArrayBase(
    NamedOperators, ReductionMethods, QuantileMethods, ArrayMethods, NamingMethods, abc.ABC
):
    """What both representations offer.

    Constructors never validate, so a leaf may be anything after a tree map (a sharding, `None`);
    operations that need axes validate first (`check_valid`).
    """

    data_array: Any

    @property
    def dtype(self) -> Any:
        """The data's dtype."""
        return self.data_array.dtype

    @property
    @abc.abstractmethod
    def named_shape(self) -> dict[AxisName, int]:
        """A fresh dict of sizes by name, in the array's order of names."""

    @property
    @abc.abstractmethod
    def positional_shape(self) -> tuple[int, ...]:
        """Sizes of the positional axes, in logical order."""

    def check_valid(self) -> None:
        """Checks the fields against the data.

        Raises:
          ValueError: When a field contradicts the data; the message says which rule broke.
        """
        self._layout()

    @abc.abstractmethod
    def as_namedarrayview(self) -> NamedArrayView:
        """The same data as a view; never computes."""

    @abc.abstractmethod
    def with_positional_prefix(self) -> NamedArray:
        """The array with positional axes first and names after them, in data order."""

    @property
    def ndim(self) -> int:
        """The number of axes, positional and named."""
        return len(self._layout().shape)

    @property
    def size(self) -> int:
        """The number of elements."""
        return int(np.prod(self._layout().shape, dtype=np.int64))

    def axis_size(self, name: AxisName) -> int:
        """The size of one named axis.

        Raises:
          ValueError: For an unknown name, with near misses.
        """
        layout = self._layout()
        return layout.shape[axis_positions("axis_size", layout, (name,))[0]]

    # --- naming and un-naming axes ---

    def tag(self, *names: AxisName) -> NamedArray:
        """Names every positional axis; never moves data.

        Args:
          *names: One new name per positional axis, in order.

        Returns:
          A `NamedArray` whose names are in data order.

        Raises:
          ValueError: For a wrong count, an integer, or a name that is taken.
        """
        count = len(self._layout().logical_axes)
        if len(names) != count:
            raise ValueError(
                f"tag: one name per positional axis is needed; positional_shape="
                f"{self._layout().positional_shape}, names={names!r}. Use tag_prefix to name only "
                "the first axes."
            )
        return self._tagged("tag", names).with_positional_prefix()

    def tag_prefix(self, *axis_order: AxisName) -> NamedArray | NamedArrayView:
        """Names the first positional axes; the others stay positional. Never moves data.

        Raises:
          ValueError: For more names than positional axes, an integer, or a name that is taken.
        """
        view = self._tagged("tag_prefix", axis_order)
        return view if view.data_axis_for_logical_axis else view.with_positional_prefix()

    def _tagged(self, what: str, names: Sequence[AxisName]) -> NamedArrayView:
        layout = self._layout()
        if len(names) > len(layout.logical_axes):
            raise ValueError(
                f"{what}: there are {len(layout.logical_axes)} positional axes (positional_shape="
                f"{layout.positional_shape}) but {len(names)} names {tuple(names)!r}; give at most "
                "one name per positional axis."
            )
        taken = set(layout.names)
        for name in names:
            if (rule := rule_broken_by_name(name)) is not None:
                raise ValueError(f"{what}: {rule}; names={tuple(names)!r}.")
            if name in taken:
                raise ValueError(
                    f"{what}: the name {name!r} is taken; names={tuple(names)!r}, named_shape="
                    f"{layout.named_shape!r}. Names of one array are distinct; choose another."
                )
            taken.add(name)
        axes = dict(zip(layout.names, layout.name_axes, strict=True))
        axes.update(zip(names, layout.logical_axes, strict=False))
        ordered = dict(sorted(axes.items(), key=lambda item: item[1]))
        rest = layout.logical_axes[len(names) :]
        return NamedArrayView(layout.shape, rest, ordered, self.data_array)

    def untag(self, *axis_order: AxisName) -> NamedArray | NamedArrayView:
        """Makes names positional, in the order given; never moves data.

        Args:
          *axis_order: Names of the new positional axes. The array must have no positional axes
            yet, since their order would be ambiguous.

        Returns:
          A view of the same data; a `NamedArray` when no name is given.

        Raises:
          ValueError: For unknown or repeated names, or when there are positional axes already.
        """
        layout = self._layout()
        if layout.logical_axes:
            raise ValueError(
                f"untag: the array has positional axes already (positional_shape="
                f"{layout.positional_shape}), so the order of the new ones would be unclear; "
                f"axis_order={axis_order!r}. Use untag_prefix to put them first, or tag the "
                "present ones before."
            )
        return self._untagged("untag", axis_order)

    def untag_prefix(self, *axis_order: AxisName) -> NamedArray | NamedArrayView:
        """Makes names the first positional axes; present ones follow. Never moves data.

        Raises:
          ValueError: For unknown or repeated names.
        """
        return self._untagged("untag_prefix", axis_order)

    def _untagged(self, what: str, names: Sequence[AxisName]) -> NamedArray | NamedArrayView:
        layout = self._layout()
        axes = axis_positions(what, layout, names)
        logical = axes + layout.logical_axes
        kept = {n: a for n, a in zip(layout.names, layout.name_axes, strict=True) if n not in names}
        view = NamedArrayView(layout.shape, logical, kept, self.data_array)
        return view if logical else view.with_positional_prefix()

    def unwrap(self, *names: AxisName) -> Any:
        """The plain array.

        Args:
          *names: All names of an array without positional axes, in the order that the result's
            axes shall have. None for an array without names.

        Returns:
          The data; the very same object when its axes are already in that order.

        Raises:
          ValueError: When names are missing, unknown or repeated, or positional axes would mix
            with named ones.
        """
        if not names and isinstance(self, NamedArray) and not self.named_axes:
            return self.data_array  # whatever the leaf is, valid or not
        layout = self._layout()
        if names and layout.logical_axes:
            raise ValueError(
                f"unwrap{names!r}: names can be listed only when all axes are named; "
                f"positional_shape={layout.positional_shape}. Tag the positional axes first, or "
                "call .untag_prefix(...) for the names and .unwrap() without names."
            )
        missing = [name for name in layout.names if name not in names]
        if missing:
            raise ValueError(
                f"unwrap{names!r}: the array still has named axes {missing!r}; named_shape="
                f"{layout.named_shape!r}. List every name: unwrap("
                + ", ".join(map(repr, layout.names))
                + ")."
            )
        return transposed(
            self.data_array, axis_positions("unwrap", layout, names) + layout.logical_axes
        )

    # --- order of axes ---

    def order_as(self, *axis_order: AxisName) -> NamedArray:
        """The array with positional axes first and then names in exactly this order.

        Raises:
          ValueError: When `axis_order` is no permutation of the names.
        """
        layout = self._layout()
        axes = axis_positions("order_as", layout, axis_order)
        if len(axes) != len(layout.names):
            missing = [name for name in layout.names if name not in axis_order]
            raise ValueError(
                f"order_as: every name must be listed once; {missing!r} missing from "
                f"{axis_order!r}, named_shape={layout.named_shape!r}."
            )
        sizes = collections.OrderedDict(
            (name, layout.shape[axis]) for name, axis in zip(axis_order, axes, strict=True)
        )
        data = transposed(as_jax(self.data_array), layout.logical_axes + axes)
        return NamedArray(sizes, data)

    def order_like(self, other: NamedArrayBase) -> NamedArray | NamedArrayView:
        """The array in the representation and axis order of `other`.

        Args:
          other: A named array with the same names; its sizes do not matter.

        Returns:
          An array with the structure of `other` (the same treedef where sizes agree).

        Raises:
          ValueError: When the names differ, or positional ranks do for a view.
          TypeError: When `other` is no named array.
        """
        if not isinstance(other, NamedArrayBase):
            raise TypeError(
                f"order_like: other must be a named array; it is {type(other).__name__}."
            )
        mine, theirs = self._layout(), other._layout()
        as_view = isinstance(other, NamedArrayView)
        ranks_differ = as_view and len(mine.logical_axes) != len(theirs.logical_axes)
        if set(mine.names) != set(theirs.names) or ranks_differ:
            raise ValueError(
                "order_like: both arrays must have the same names (and, for a view, as many "
                f"positional axes); self is "
                f"{named_shape_text(mine.named_shape, mine.positional_shape)}, other is "
                f"{named_shape_text(theirs.named_shape, theirs.positional_shape)}."
            )
        if not as_view:
            return self.order_as(*theirs.names)
        sources = axis_positions("order_like", mine, theirs.names) + mine.logical_axes
        targets = theirs.name_axes + theirs.logical_axes
        source_of = dict(zip(targets, sources, strict=True))
        data = transposed(
            as_jax(self.data_array), tuple(source_of[axis] for axis in range(len(sources)))
        )
        return NamedArrayView(
            tuple(data.shape),
            theirs.logical_axes,
            dict(zip(theirs.names, theirs.name_axes, strict=True)),
            data,
        )

    def canonicalize(self) -> NamedArray:
        """The array with its names sorted.

        Raises:
          TypeError: When the names cannot be compared.
        """
        names: Any = self._layout().names
        return self.order_as(*sorted(names))

    # --- broadcasting ---

    def broadcast_to(
        self,
        positional_shape: Sequence[int] = (),
        named_shape: Mapping[AxisName, int] | None = None,
    ) -> NamedArrayBase:
        """Broadcasts positional axes by NumPy's rules and adds the names that are missing.

        Args:
          positional_shape: The positional shape to reach.
          named_shape: Names the result has besides the array's own. Named axes never stretch: a
            name that the array has must have this size already.

        Returns:
          The array itself when it has both shapes; else names first: own ones, then new ones.

        Raises:
          ValueError: When a size cannot be reached.
        """
        layout = self._layout()
        positional = tuple(positional_shape)
        wanted = dict(named_shape or {})
        own = layout.named_shape
        if layout.positional_shape == positional and own == wanted:
            return self
        for name, size in wanted.items():
            if name in own and own[name] != size:
                raise ValueError(
                    f"broadcast_to: axis {name!r} has size {own[name]} and cannot become {size}; "
                    f"named axes do not stretch, not even from size 1. named_shape={own!r}. "
                    f"Index it away first: x[{{{name!r}: 0}}]."
                )
        new = {name: size for name, size in wanted.items() if name not in own}
        names = (*layout.names, *new)
        if len(layout.logical_axes) > len(positional):
            raise ValueError(
                f"broadcast_to: positional_shape={positional} has fewer axes than the array's "
                f"{layout.positional_shape}."
            )
        order = layout.name_axes + layout.logical_axes
        data = transposed(as_jax(self.data_array), order)
        count = len(layout.names)
        pad = len(positional) - len(layout.logical_axes)
        data = jax.lax.expand_dims(data, range(count, count + len(new) + pad))
        sizes = tuple(own.get(name, new.get(name, 0)) for name in names)
        try:
            data = jnp.broadcast_to(data, sizes + positional)
        except ValueError as exc:
            raise ValueError(
                f"broadcast_to: positional shape {layout.positional_shape} cannot become "
                f"{positional}; sizes must agree from the right or be 1."
            ) from exc
        return pack(data, names)

    def broadcast_like(self, other: Any) -> NamedArrayBase:
        """Broadcasts to the shapes of `other`, a named array or anything with a NumPy shape."""
        if isinstance(other, NamedArrayBase):
            return self.broadcast_to(other.positional_shape, other.named_shape)
        shape = other.shape if hasattr(other, "shape") else jnp.shape(other)
        return self.broadcast_to(shape, {})

    # --- indexing ---

    def __getitem__(self, indexer: Any) -> NamedArrayBase:
        return self.at[indexer].get()

    @property
    def at(self) -> At:
        """Indexing with options and functional updates, `x.at[{"row": 0}].set(value)`."""
        self._layout()
        return At(self)

    def __repr__(self) -> str:
        return one_line(self)


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False, match_args=False)
class NamedArray(NamedArrayBase):
    """A named array in positional-prefix form: positional axes, then named ones.

    Leading axes of the leaf may come and go (scan, `jax.vmap`, stacking trees): they are positional.

    Attributes:
      named_axes: Sizes by name: the trailing part of the data's shape. Never mutate it.
      data_array: The data, an array or whatever a tree map put there.
    """

    named_axes: collections.OrderedDict[AxisName, int]
    data_array: Any

    # JAX rebuilds arrays through the constructor; a frozen dataclass's own costs as much as a small
    # operation, since it stores each field through `object.__setattr__`.
    def __init__(self, named_axes: collections.OrderedDict[AxisName, int], data_array: Any) -> None:
        fields = self.__dict__
        fields["named_axes"] = named_axes
        fields["data_array"] = data_array

    @classmethod
    def wrap(cls, array: Any, *names: AxisName) -> NamedArray:
        """A named array from an array-like; see `wrap`."""
        return wrap(array, *names)

    @property
    def named_shape(self) -> dict[AxisName, int]:
        """Sizes by name, in the order of `named_axes`; answers for any leaf."""
        return dict(self.named_axes)

    @property
    def positional_shape(self) -> tuple[int, ...]:
        """The leading part of the data's shape."""
        return self._layout().positional_shape

    def _layout(self) -> Layout:
        if isinstance(self.named_axes, collections.OrderedDict):
            try:
                return prefix_layout(tuple(self.named_axes.items()), self.data_array.shape)
            except (AttributeError, TypeError):
                pass
        return self._layout_of_unusual()

    def _layout_of_unusual(self) -> Layout:
        """The layout where it cannot be looked up: explains what is wrong, or plans uncached."""
        _require_array(self.data_array, "NamedArray")
        if not isinstance(self.named_axes, collections.OrderedDict):
            raise ValueError(
                "NamedArray: named_axes must be a collections.OrderedDict, since its order is "
                f"that of the data's axes; it is {type(self.named_axes).__name__}."
            )
        for name, size in self.named_axes.items():
            if not is_size(size):
                raise ValueError(
                    f"NamedArray: the size of axis {name!r} must be an integer; it is {size!r}."
                )
        axes, shape = tuple(self.named_axes.items()), tuple(self.data_array.shape)
        return prefix_layout.__wrapped__(axes, shape)

    def as_namedarrayview(self) -> NamedArrayView:
        """The same data as a view: logical axes first, names after them."""
        layout = self._layout()
        names = dict(zip(layout.names, layout.name_axes, strict=True))
        return NamedArrayView(layout.shape, layout.logical_axes, names, self.data_array)

    def with_positional_prefix(self) -> NamedArray:
        """The array itself."""
        return self


@dataclasses.dataclass(frozen=True, init=False, eq=False, repr=False, match_args=False)
class NamedArrayView(NamedArrayBase):
    """A named array over data in any layout.

    Attributes:
      data_shape: The shape of the data, which must stay so.
      data_axis_for_logical_axis: The data axis of each positional axis.
      data_axis_for_name: The data axis of each name. Never mutate it.
      data_array: The data.
    """

    data_shape: tuple[int, ...]
    data_axis_for_logical_axis: tuple[int, ...]
    data_axis_for_name: dict[AxisName, int]
    data_array: Any

    def __init__(
        self,
        data_shape: tuple[int, ...],
        data_axis_for_logical_axis: tuple[int, ...],
        data_axis_for_name: dict[AxisName, int],
        data_array: Any,
    ) -> None:
        fields = self.__dict__
        fields["data_shape"] = data_shape
        fields["data_axis_for_logical_axis"] = data_axis_for_logical_axis
        fields["data_axis_for_name"] = data_axis_for_name
        fields["data_array"] = data_array

    @property
    def named_shape(self) -> dict[AxisName, int]:
        """Sizes by name, in data order; answers for any leaf."""
        in_order = sorted(self.data_axis_for_name.items(), key=lambda item: item[1])
        return {name: self.data_shape[axis] for name, axis in in_order}

    @property
    def positional_shape(self) -> tuple[int, ...]:
        """Sizes of the logical axes; answers for any leaf."""
        return tuple(self.data_shape[axis] for axis in self.data_axis_for_logical_axis)

    def _layout(self) -> Layout:
        try:
            return view_layout(
                self.data_shape,
                self.data_axis_for_logical_axis,
                tuple(self.data_axis_for_name.items()),
                self.data_array.shape,
            )
        except (AttributeError, TypeError):
            _require_array(self.data_array, "NamedArrayView")
        return view_layout.__wrapped__(
            self.data_shape,
            self.data_axis_for_logical_axis,
            tuple(self.data_axis_for_name.items()),
            tuple(self.data_array.shape),
        )

    def as_namedarrayview(self) -> NamedArrayView:
        """The view itself."""
        return self

    def with_positional_prefix(self) -> NamedArray:
        """The data transposed to logical axes first, then names in data order."""
        layout = self._layout()
        sizes = collections.OrderedDict(layout.named_shape)
        order = layout.logical_axes + layout.name_axes
        return NamedArray(sizes, transposed(self.data_array, order))


def _require_array(leaf: Any, what: str) -> None:
    if not (hasattr(leaf, "shape") and hasattr(leaf, "dtype")):
        raise ValueError(
            f"{what}: data_array must be an array (it needs a shape and a dtype); it is "
            f"{type(leaf).__name__}. A tree map may have put it there; map it back first."
        )


# Registered as dataclasses, so that JAX flattens them without running Python: a model holds hundreds,
# and each call of a compiled function flattens them all.
jax.tree_util.register_dataclass(NamedArray, data_fields=["data_array"], meta_fields=["named_axes"])
jax.tree_util.register_dataclass(
    NamedArrayView,
    data_fields=["data_array"],
    meta_fields=["data_shape", "data_axis_for_logical_axis", "data_axis_for_name"],
)
register_makers(NamedArray, NamedArrayView)


def wrap(array: Any, *names: AxisName) -> NamedArray:
    """Makes a named array from an array-like.

    Args:
      array: What `jnp.asarray` takes: an array, a number, a list.
      *names: One name per axis; none keeps all axes positional.

    Returns:
      A `NamedArray`.

    Raises:
      ValueError: When the array is a named array with axes already, or the count is wrong.
      TypeError: When it is no array-like.

    Example:
        >>> import pz_named as nx
        >>> nx.wrap([[1, 2, 3], [4, 5, 6]], "row", "column").named_shape
        {'row': 2, 'column': 3}
    """
    if isinstance(array, NamedArrayBase):
        if array._layout().shape:
            shape = named_shape_text(array.named_shape, array.positional_shape)
            raise ValueError(
                f"wrap: the array is a named array already, {shape}. Use .tag(...) to name its "
                "positional axes."
            )
        array = array.data_array
    wrapped = NamedArray(collections.OrderedDict(), jnp.asarray(array))
    return wrapped.tag(*names) if names else wrapped


def is_namedarray(value: Any) -> TypeGuard[NamedArrayBase]:
    """Whether `value` is a named array; made for `is_leaf=` of JAX's tree functions."""
    return isinstance(value, NamedArrayBase)
