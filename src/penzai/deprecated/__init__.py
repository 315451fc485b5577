"""Penzai's legacy V1 API lived here; it is not provided."""

raise ImportError(
    "penzai.deprecated (the V1 API) is not provided by this release; write for the V2 API "
    "(`from penzai import pz`), or pin penzai<0.3. See 'Versions' in the README."
)
