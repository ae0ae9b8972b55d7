"""Searches for settings with Ray Tune: ``ssm-metarl tune``."""
