"""Scheduled FHIR bulk export: sign in, kick off, poll, land, publish as Parquet with lineage.

Layers, imports point downwards only: definitions > orchestration, cli > exports > tables, bulkdata > auth >
lake > config > errors. `sandbox` is an FHIR server of its own and shares no code with the client.
"""
