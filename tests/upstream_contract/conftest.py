"""What the overlay relies on in upstream. Runs on the installed fork, in seconds, before other tests.

When a rebase moves something, the failure here names it; the other suites would only show that
something is wrong.
"""

from __future__ import annotations

import pytest

pytest.importorskip("vllm.v1.generation_loop", reason="the fork is not installed")
