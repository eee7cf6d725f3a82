"""The operator's methods that the study of the demo model compares."""

from __future__ import annotations

METHODS = ("rainfusion", "rainfusion_two_way", "rainfusion_plus", "rainfusion2")
"""Named here, and not those that there are: the results hold these."""
