"""The foundation of every room: errors, files that are written whole, statistics, random draws, processes and signals."""
