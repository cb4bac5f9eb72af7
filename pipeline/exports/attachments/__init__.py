"""Attachments of published resources: read from the export partitions, fetched, verified, stored, linked.

`reading` finds them, `blobs` keeps their content by sha256, `fetched` remembers on the way, `links` is the
table that says what became of each, `run` does the whole. What a URL may be asked with is `bulkdata`'s to
say. No Dagster here.
"""
