"""Penzai: models as data (umbrella of the pz-* wheels)."""
