"""Levels, and an account of what was skipped.

A folder gives its tests their mark, so that no test can be in a wrong level by
forgetting one. A test that needs namespaces or the real openvpn may be skipped
only where root is missing: elsewhere a skip is a failure. Every skip is printed
with its reason at the end of the run.
"""

import os
from pathlib import Path

import pytest
from hypothesis import settings

HERE = Path(__file__).parent
FOLDER_MARKS = {"netns": "netns", "interop": "interop", "kernel": "kernel"}
NEED_ROOT = ("netns", "interop")

settings.register_profile(
    "dev", max_examples=50, deadline=None, derandomize="CI" in os.environ
)
settings.register_profile(
    "ci", max_examples=500, deadline=None, derandomize=True, print_blob=True
)
settings.register_profile("nightly", max_examples=50_000, deadline=None)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))


@pytest.fixture
def lab():
    """A Qubes network, fresh for each test."""
    from lab import Lab

    with Lab() as made:
        yield made


@pytest.fixture
def lab6():
    """The same, with IPv6 on the uplink."""
    from lab import Lab

    with Lab(ipv6=True) as made:
        yield made


def _folder(path: Path) -> str:
    """The folder below tests/ that a path is in, or nothing."""
    try:
        parts = path.resolve().relative_to(HERE).parts
    except ValueError:
        return ""
    return parts[0] if len(parts) > 1 else ""


def pytest_collection_modifyitems(items):
    for item in items:
        mark = FOLDER_MARKS.get(_folder(item.path))
        if mark:
            item.add_marker(mark)


def _reason(report) -> str:
    detail = report.longrepr
    text = detail[2] if isinstance(detail, tuple) else str(detail)
    return text.removeprefix("Skipped: ")


def _forbid_skip(report) -> None:
    """Turn a skip into a failure where root is there."""
    if report.skipped and not hasattr(report, "wasxfail"):
        reason = _reason(report)
        report.outcome = "failed"
        report.longrepr = f"root is available, yet it was skipped: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    marked = any(item.get_closest_marker(name) for name in NEED_ROOT)
    if marked and os.geteuid() == 0:
        _forbid_skip(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if _folder(collector.path) in NEED_ROOT and os.geteuid() == 0:
        _forbid_skip(report)
    return report


def pytest_runtest_setup(item):
    if os.geteuid() == 0:
        return
    for name in NEED_ROOT:
        if item.get_closest_marker(name):
            pytest.skip("needs root: network namespaces")


def _outcomes(terminalreporter):
    """Give (node id, whether it passed) of every test of this run."""
    for kind in ("passed", "failed", "error"):
        for report in terminalreporter.stats.get(kind, ()):
            if report.when == "call" or kind == "error":
                yield report.nodeid, kind == "passed"


def _print_matrix(terminalreporter):
    """Print what became of each cell of the protocol matrix."""
    if not (HERE / "interop").is_dir():
        return
    from tests.interop import matrix

    lines = list(matrix.table(_outcomes(terminalreporter)))
    if lines:
        terminalreporter.section("the protocol matrix")
        for line in lines:
            terminalreporter.write_line(line)


def _print_rows(terminalreporter):
    """Say which attacks and faults this run tried, and which held."""
    if not (HERE / "hostile").is_dir():
        return
    from tests.hostile import rows

    outcomes = list(_outcomes(terminalreporter))
    rows.remember(outcomes)
    lines = rows.summary(outcomes)
    if lines:
        terminalreporter.section(
            "attacks and faults, see tests/hostile/rows.py"
        )
        for line in lines:
            terminalreporter.write_line(line)


def pytest_terminal_summary(terminalreporter):
    _print_rows(terminalreporter)
    _print_matrix(terminalreporter)
    skipped = terminalreporter.stats.get("skipped", [])
    if not skipped:
        return
    terminalreporter.section(f"{len(skipped)} skipped, and why")
    for report in skipped:
        terminalreporter.write_line(f"{report.nodeid}: {_reason(report)}")
