"""Puts it together: the command line, recipes, jobs and evaluation runs."""
