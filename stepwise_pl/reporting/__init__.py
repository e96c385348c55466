"""What `stepwise_pl.report` is made of: history (reading) -> figures and tables (what is shown) -> interactive, static and page."""
