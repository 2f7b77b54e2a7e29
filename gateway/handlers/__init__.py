"""The HTTP surface, one module per subject; `gateway.app` puts their route tables together."""
