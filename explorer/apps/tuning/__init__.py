"""Searches as files, the process's searches that run, and the page that asks for them and watches."""
