"""How much of it: the tests that throw things at the system throw more when told to.

``USERSTREAM_TEST_DOSE=10 ./userstream test tests/e2e/test_malformed_messages.py`` takes ten
times the examples, and about ten times the time.
"""

import os
import random

DOSE = int(os.environ.get("USERSTREAM_TEST_DOSE", "1"))
"""The multiple of the usual dose."""

SEED = int(os.environ.get("USERSTREAM_TEST_SEED", random.randrange(2**32)))  # noqa: S311
"""What chance begins with; a failing test names it, so that it can be repeated."""


def dose(usual: int) -> int:
    """The number of examples, where ``usual`` is what every run of the tests takes."""
    return usual * DOSE
