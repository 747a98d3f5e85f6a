"""What the API can't have: the operator's mistakes at start-up."""

from __future__ import annotations


class ListenError(Exception):
    """A listener can't be made. The text names the setting, the problem and the cure."""
