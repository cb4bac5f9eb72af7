"""One export run, from the intent to the receipt: facts, what comes next, landing, publishing, watermark.

Lives here: every rule about the life of an export, and the steps that move it on, as plain functions over
the lake and a bulk-data client. May not live here: Dagster, HTTP details, Parquet details.
"""
