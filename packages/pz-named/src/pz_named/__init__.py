"""Named-axis arrays for JAX: operations by axis name, lifting, shape checking."""

from __future__ import annotations

from pz_named.arrays import NamedArray as NamedArray
from pz_named.arrays import NamedArrayBase as NamedArrayBase
from pz_named.arrays import NamedArrayView as NamedArrayView
from pz_named.arrays import is_namedarray as is_namedarray
from pz_named.arrays import wrap as wrap
from pz_named.axis_names import AxisName as AxisName
from pz_named.axis_names import TmpPosAxisMarker as TmpPosAxisMarker
from pz_named.creation import arange as arange
from pz_named.creation import full as full
from pz_named.creation import ones as ones
from pz_named.creation import zeros as zeros
from pz_named.joining import concatenate as concatenate
from pz_named.joining import stack as stack
from pz_named.joining import unstack as unstack
from pz_named.lifting import nmap as nmap
from pz_named.looping import order_like as order_like
from pz_named.looping import scan as scan
from pz_named.sampling import random_split as random_split

__all__ = [
    "AxisName",
    "NamedArray",
    "NamedArrayBase",
    "NamedArrayView",
    "TmpPosAxisMarker",
    "arange",
    "concatenate",
    "full",
    "is_namedarray",
    "nmap",
    "ones",
    "order_like",
    "random_split",
    "scan",
    "stack",
    "unstack",
    "wrap",
    "zeros",
]
