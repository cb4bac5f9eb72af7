"""Where everything is written: an fsspec filesystem and the few ways of writing that cannot lose data.

Lives here: opening the lake, create-if-absent, putting whole files under their final name, listing.
May not live here: what the files mean (`pipeline.exports`), how tables are laid out (`pipeline.tables`).
"""
