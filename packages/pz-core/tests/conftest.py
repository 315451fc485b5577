"""Hypothesis profiles, and the path to the shared helpers of this wheel's tests."""

import os
import pathlib
import sys

import hypothesis

# importlib import mode keeps test folders off sys.path; the helpers' module name is their own.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=1000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
