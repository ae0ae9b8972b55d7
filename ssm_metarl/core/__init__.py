"""The networks: state space core, baselines, policy. Pure torch and numpy.

nn.LayerNorm and nn.BatchNorm are banned here: under vmap their second-order gradient is silently wrong in torch 2.13.
"""
