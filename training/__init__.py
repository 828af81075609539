"""What the trainings share: the loop that survives a kill, checkpoints, optimisers, the perceptual loss."""
