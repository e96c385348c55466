"""Whether answers are right: verified, decoded, counted."""
