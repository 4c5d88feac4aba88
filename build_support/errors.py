"""The one exception a user of the build sees."""

from __future__ import annotations


class BuildError(Exception):
    """A build cannot go on; the message is one plain sentence that says what to do."""
