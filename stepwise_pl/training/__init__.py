"""Lightning: the module, the guard, checkpoints, resuming, loggers."""
