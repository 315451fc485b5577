"""Declarative, named-axis neural network layers that are plain JAX pytrees."""
