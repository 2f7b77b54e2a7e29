"""Whether the tests can fail: one check after the other is taken out of a copy, and some test has to notice."""
