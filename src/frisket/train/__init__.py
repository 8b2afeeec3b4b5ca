"""The loop, the step, the optimizer, checkpoints."""
