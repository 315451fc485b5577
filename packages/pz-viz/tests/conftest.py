"""Shared set-up: hypothesis profiles, and the folder of sample models on the path."""

import os
import pathlib
import sys

import hypothesis
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent / "_helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def without_the_umbrella(monkeypatch):
    """Names print as they do without `penzai`, which a test elsewhere may have imported."""
    monkeypatch.delitem(sys.modules, "penzai.pz", raising=False)
