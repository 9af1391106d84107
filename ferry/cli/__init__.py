"""The break-glass command line: what an operator does when Prefect is not there. One module for each command."""
