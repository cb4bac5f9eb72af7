"""Attachments of published resources: read from the export partitions, fetched, verified, stored, linked.

`reading` finds them, `blobs` keeps their content by sha256, `fetched` remembers on the way, `links` is the
table that says what became of each, `origins` are the servers they lie on, `linking` does one export and
`run` all that lack something, `unlinked` tells what may go. What a URL may be asked with is `bulkdata`'s to
say. No Dagster here.
"""
