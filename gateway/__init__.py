"""Outlast's gateway: takes jobs over HTTP and pushes their events; holds no job state of its own."""
