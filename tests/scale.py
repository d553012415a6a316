"""How much of it: the tests that throw things at the system throw more when told to.

``USERSTREAM_TEST_SCALE=10 ./userstream test tests/e2e/test_malformed_messages.py`` takes ten
times the examples, and about ten times the time.
"""

import os
import random

import hypothesis

SCALE = int(os.environ.get("USERSTREAM_TEST_SCALE", "1"))
"""The multiple of the usual number of examples."""

_WISH = os.environ.get("USERSTREAM_TEST_SEED", "1")

SEED = random.randrange(2**32) if _WISH == "random" else int(_WISH)  # noqa: S311
"""What chance begins with; a failing test names it, so that it can be repeated.

The same with every run, unless told otherwise: a run that fails fails for what was changed.
"""

PROFILE = "by seed"
"""Of ``hypothesis``, which takes no seed but only the same or other examples."""

hypothesis.settings.register_profile(PROFILE, derandomize=_WISH != "random", print_blob=True)


def scaled(usual: int) -> int:
    """The number of examples, where ``usual`` is what every run of the tests takes."""
    return usual * SCALE
