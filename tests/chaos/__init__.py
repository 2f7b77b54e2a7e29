"""Gateways, workers and Redis under load, killed, paused and cut at random; then the books are checked.

What is counted is read from Redis and from the listeners' own records, never from a counter inside the product.
"""
