"""The look inside: probes, patches, lens, attention and geometry of trained runs, from their kept checkpoints."""
