"""Named-axis arrays for JAX: operations by axis name, lifting, shape checking."""

from __future__ import annotations

from pz_named.arrays import NamedArray as NamedArray
from pz_named.arrays import NamedArrayBase as NamedArrayBase
from pz_named.arrays import NamedArrayView as NamedArrayView
from pz_named.arrays import is_namedarray as is_namedarray
from pz_named.arrays import wrap as wrap
from pz_named.axis_names import AxisName as AxisName
from pz_named.axis_names import TmpPosAxisMarker as TmpPosAxisMarker
from pz_named.contraction import dot as dot
from pz_named.contraction import einsum as einsum
from pz_named.creation import arange as arange
from pz_named.creation import full as full
from pz_named.creation import full_like as full_like
from pz_named.creation import linspace as linspace
from pz_named.creation import ones as ones
from pz_named.creation import ones_like as ones_like
from pz_named.creation import zeros as zeros
from pz_named.creation import zeros_like as zeros_like
from pz_named.interop import from_dlpack as from_dlpack
from pz_named.interop import from_xarray as from_xarray
from pz_named.interop import sharding_of as sharding_of
from pz_named.interop import to_dlpack as to_dlpack
from pz_named.interop import to_xarray as to_xarray
from pz_named.joining import concatenate as concatenate
from pz_named.joining import stack as stack
from pz_named.joining import unstack as unstack
from pz_named.lifting import nmap as nmap
from pz_named.looping import associative_scan as associative_scan
from pz_named.looping import map as map
from pz_named.looping import order_like as order_like
from pz_named.looping import scan as scan
from pz_named.looping import vmap_over as vmap_over
from pz_named.masks import band_mask as band_mask
from pz_named.masks import causal_mask as causal_mask
from pz_named.normalization import log_softmax as log_softmax
from pz_named.normalization import softmax as softmax
from pz_named.normalization import standardize as standardize
from pz_named.ordering import argsort as argsort
from pz_named.ordering import flip as flip
from pz_named.ordering import pad as pad
from pz_named.ordering import repeat as repeat
from pz_named.ordering import roll as roll
from pz_named.ordering import sort as sort
from pz_named.ordering import split as split
from pz_named.ordering import tile as tile
from pz_named.quantiles import median as median
from pz_named.quantiles import quantile as quantile
from pz_named.rearrangement import expand as expand
from pz_named.rearrangement import merge_axes as merge_axes
from pz_named.rearrangement import rearrange as rearrange
from pz_named.rearrangement import rename as rename
from pz_named.rearrangement import split_axis as split_axis
from pz_named.rearrangement import squeeze as squeeze
from pz_named.reductions import all as all
from pz_named.reductions import any as any
from pz_named.reductions import argmax as argmax
from pz_named.reductions import argmin as argmin
from pz_named.reductions import count_nonzero as count_nonzero
from pz_named.reductions import cumprod as cumprod
from pz_named.reductions import cumsum as cumsum
from pz_named.reductions import logsumexp as logsumexp
from pz_named.reductions import max as max
from pz_named.reductions import mean as mean
from pz_named.reductions import min as min
from pz_named.reductions import prod as prod
from pz_named.reductions import std as std
from pz_named.reductions import sum as sum
from pz_named.reductions import var as var
from pz_named.sampling import random_bernoulli as random_bernoulli
from pz_named.sampling import random_categorical as random_categorical
from pz_named.sampling import random_gumbel as random_gumbel
from pz_named.sampling import random_normal as random_normal
from pz_named.sampling import random_permutation as random_permutation
from pz_named.sampling import random_randint as random_randint
from pz_named.sampling import random_split as random_split
from pz_named.sampling import random_truncated_normal as random_truncated_normal
from pz_named.sampling import random_uniform as random_uniform
from pz_named.selection import compress as compress
from pz_named.selection import one_hot as one_hot
from pz_named.selection import take as take
from pz_named.selection import take_along as take_along
from pz_named.selection import top_k as top_k
from pz_named.selection import where as where
from pz_named.signatures import checked as checked
from pz_named.slicing import dynamic_slice as dynamic_slice
from pz_named.slicing import dynamic_update_slice as dynamic_update_slice
from pz_named.slicing import slice_axis as slice_axis

__all__ = [
    "AxisName",
    "NamedArray",
    "NamedArrayBase",
    "NamedArrayView",
    "TmpPosAxisMarker",
    "all",
    "any",
    "arange",
    "argmax",
    "argmin",
    "argsort",
    "associative_scan",
    "band_mask",
    "causal_mask",
    "checked",
    "compress",
    "concatenate",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "dot",
    "dynamic_slice",
    "dynamic_update_slice",
    "einsum",
    "expand",
    "flip",
    "from_dlpack",
    "from_xarray",
    "full",
    "full_like",
    "is_namedarray",
    "linspace",
    "log_softmax",
    "logsumexp",
    "map",
    "max",
    "mean",
    "median",
    "merge_axes",
    "min",
    "nmap",
    "one_hot",
    "ones",
    "ones_like",
    "order_like",
    "pad",
    "prod",
    "quantile",
    "random_bernoulli",
    "random_categorical",
    "random_gumbel",
    "random_normal",
    "random_permutation",
    "random_randint",
    "random_split",
    "random_truncated_normal",
    "random_uniform",
    "rearrange",
    "rename",
    "repeat",
    "roll",
    "scan",
    "sharding_of",
    "slice_axis",
    "softmax",
    "sort",
    "split",
    "split_axis",
    "squeeze",
    "stack",
    "standardize",
    "std",
    "sum",
    "take",
    "take_along",
    "tile",
    "to_dlpack",
    "to_xarray",
    "top_k",
    "unstack",
    "var",
    "vmap_over",
    "where",
    "wrap",
    "zeros",
    "zeros_like",
]
