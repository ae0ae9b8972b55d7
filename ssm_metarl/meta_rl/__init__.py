"""Meta-learning: the inner step, the objectives, the advantages. Pure torch and numpy."""
