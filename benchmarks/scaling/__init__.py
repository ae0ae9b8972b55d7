"""Simulated workers, and what is measured of a driver that feeds them: the parts of `scale.py`."""
