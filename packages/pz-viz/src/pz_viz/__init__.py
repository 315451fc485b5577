"""Treescope views of Penzai models, selections, named arrays and tokens."""
