"""Signing in: keys and JWK Sets, signers, client assertions, discovery, token sources, the bearer's policy.

Here lives all that turns a key into a token and decides which origin may see it. It knows HTTP and OAuth,
but neither Dagster nor what an export is, and of the configuration only who we are at Key Vault: the layers
above hand in plain values and an `httpx.Client`. Secrets never enter a message, a log line or a repr; what a
server said is cleaned first.
"""
