"""Evaluation of trained runs: held-out tasks, intervals, pictures."""
