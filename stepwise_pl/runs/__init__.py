"""Files on disk: run folders and sweep folders, their records and results. Free of torch."""
