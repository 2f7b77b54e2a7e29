"""`outlast doctor`: from an error to the one thing to change.

It walks as a good engineer does: capture the failure, place it, measure the chain (the origin first), compare with one
that works, change one thing, prove it. It is a client: nothing of the server's rooms is imported here.

Most of it does no I/O. What does: `exchange` (one HTTP exchange, with a clock on every byte), `probes` (the
measurements) and `examine` (the walk).
"""
