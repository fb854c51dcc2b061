"""The project's own tests of the kernels as a job: a row for each as it ends; python -m bench.gpu.pytests FILES."""

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from bench.gpu.jobs import job_parser
from bench.gpu.rows import Row, append

if TYPE_CHECKING:
    import pytest

MAX_FAILURES = 30  # a file: after a fault of the GPU every further test fails
OUTCOMES = {"passed": "ok", "failed": "failed", "skipped": "skipped"}


class Reporter:
    """A plugin of pytest that appends the rows; with xdist it is that of the process that deals out the tests."""

    def __init__(self, rows: Path):
        self.rows, self.out = rows, os.fdopen(os.dup(1), "w")  # what pytest captures is not this

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        print(f"at: {nodeid}", file=self.out, flush=True)

    def pytest_runtest_logreport(self, report: "pytest.TestReport") -> None:
        if report.when == "call" or (report.when == "setup" and not report.passed) or report.outcome == "failed":
            what, _, case = report.nodeid.partition("::")
            note = ""
            if report.outcome == "failed":
                crash = getattr(report.longrepr, "reprcrash", None)
                said = crash.message if crash else str(report.longrepr)
                note = f"{report.when}: {' '.join(said.split())[:300]}"
            row = Row("tests", what, case, ms=1000 * report.duration, outcome=OUTCOMES[report.outcome], note=note)
            append(self.rows, row)

    def pytest_collectreport(self, report: "pytest.CollectReport") -> None:
        if report.failed:
            said = str(report.longrepr).strip().splitlines()
            append(
                self.rows, Row("tests", report.nodeid, "collecting", outcome="failed", note=said[-1] if said else "")
            )


def main() -> int:
    import pytest

    parser = job_parser("pytests", __doc__)
    parser.add_argument("--workers", type=int, default=1, help="processes, where pytest-xdist is installed")
    parser.add_argument("--only", default="", help="pytest's -k")
    parser.add_argument("files", nargs="+")
    args = parser.parse_args()
    words = ["--tb=short", "-p", "no:cacheprovider", f"--maxfail={MAX_FAILURES}", "-k", args.only, *args.files]
    if args.workers > 1 and find_spec("xdist"):
        words += ["-n", str(args.workers)]
    code = pytest.main(words, plugins=[Reporter(args.rows)])
    # Failures are rows, and so are files that cannot be collected; what else went wrong is this job's death.
    return 0 if code in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED, pytest.ExitCode.INTERRUPTED) else int(code)


if __name__ == "__main__":
    sys.exit(main())
