"""Reports on runs: history reads run folders, figures and tables choose what is shown, and interactive, static and page draw it."""
