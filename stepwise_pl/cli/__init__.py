"""The command line: Hydra, sweeps, and the words printed for the person at the keyboard. Only this room imports Hydra."""
