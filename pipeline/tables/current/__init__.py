"""The current tables: of each resource the newest version, made from the export partitions alone.

`fold` holds the rules (which version stands), `evidence` reads what they need from parts, `chunks` is the
Delta table that is rewritten as little as possible; `shares` is what a merge is of, `deciding` tells which
rows stand, `merging` writes them.
What an export is, and which of them count, is for `pipeline.exports` to say.
"""
