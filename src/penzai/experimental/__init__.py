"""Penzai's V2 API once lived here, before it became the main one; it is not provided."""

raise ImportError(
    "penzai.experimental is not provided by this release; its modules are the main ones now: "
    "`penzai.experimental.v2.x` is `penzai.x`. See 'Versions' in the README."
)
