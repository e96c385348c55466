"""What is shown of runs. history reads their folders; figures and tables say what is shown; interactive, static and page draw it."""
