"""The two reports that the tests of this folder look at."""

import pytest
from report_cases import make_hostile_report, make_report

from raytag.report.content import Report


@pytest.fixture(scope="session")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="session")
def hostile() -> Report:
    return make_hostile_report()
