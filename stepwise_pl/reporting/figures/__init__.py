"""Figures as plain data: their types in `data`, and a file for each subject; `interactive` and `static` draw them."""
