"""What each kind of system wants before it knows this client: steps, and the few we can do ourselves.

Lives here: one module per system, plain functions from a source and its public keys to steps; `box` and
`vault` send what `register --apply` sends. May not live here: printing, private keys, Dagster.
"""
