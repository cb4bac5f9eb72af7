"""Dagster: partitions, assets, jobs, schedule, sensor, checks for each source of the configuration.

Lives here: what Dagster has to be told, one module a concept. May not live here: protocol, rules about the
life of an export, formats; those are `pipeline.exports` and below. Nothing here is imported from below.
Loading must stay quick and touch neither network nor lake (facts/dagster.md 2).
"""
