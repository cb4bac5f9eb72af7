"""Where everything is written, a folder or Azure storage, and the few ways of writing that cannot lose data.

Lives here: opening the lake with its credentials, create-if-absent, compare-and-swap, putting whole files
under their final name, listing, spools, and what a storage account's refusals mean.
May not live here: what the files mean (`pipeline.exports`), how tables are laid out (`pipeline.tables`).
"""
