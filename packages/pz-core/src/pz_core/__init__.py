"""Immutable pytree structs, selectors and variables for JAX models."""
