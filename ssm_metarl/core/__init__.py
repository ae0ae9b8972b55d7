"""The networks: state space core, baselines, policy. Pure torch and numpy; nn.LayerNorm and nn.BatchNorm are banned here,
because their second-order gradients under vmap are silently wrong in torch 2.13."""
