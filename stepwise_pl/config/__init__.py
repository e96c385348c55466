"""Every key of the configuration: its meaning, its check, its YAML. `run.Config` holds all of a training run."""
