"""A process of ours ends right after its exit handlers."""

JOB = """
import atexit, sys
from autogen_team._process import exits
done = exits.skip_teardown()

class Late:
    def __del__(self):
        print("teardown")

late = Late()
late.itself = late
atexit.register(print, "handler", end=" ")
"""


def test_the_teardown_is_skipped(run_python):
    """Exit handlers run, and buffered output is written."""
    status, out, err = run_python("-c", JOB + "done()", fresh=True)

    assert (status, out, err) == (0, "handler ", "")


def test_a_failure_ends_as_usual(run_python):
    """Without the call at the end, the interpreter ends as always, with its status."""
    status, out, err = run_python("-c", JOB + "sys.exit(3)", fresh=True)

    assert (status, err) == (3, "")
    assert out.split() == ["handler", "teardown"]


def test_a_closed_stream_is_no_fault(run_python):
    """A stream that the process has closed, or does not have, is left alone."""
    status, out, err = run_python(
        "-c", JOB + "sys.stdout.close(); sys.stderr = None; atexit.unregister(print); done()", fresh=True
    )

    assert (status, out, err) == (0, "", "")
