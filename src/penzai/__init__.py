"""Penzai: models as data.

    from penzai import pz

Every module path of Penzai is here and is the module of the wheel that holds it:
`penzai.core.selectors` is `pz_core.selectors`.
"""

from importlib import metadata as _metadata

__version__ = _metadata.version("penzai")
