import os
import pathlib
import sys

import hypothesis

# The import mode "importlib" puts no test folder on the path; helpers live in one of their own.
sys.path.insert(0, str(pathlib.Path(__file__).parent / "_helpers"))

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=15, derandomize=True, print_blob=True
)
hypothesis.settings.register_profile("thorough", deadline=None, max_examples=300, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
