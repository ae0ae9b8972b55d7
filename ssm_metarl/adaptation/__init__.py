"""Adaptation after deployment."""
