"""The foundation of every room: errors in one line, files that are written whole, statistics, random draws, processes and signals."""
