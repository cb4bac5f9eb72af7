"""The FHIR Bulk Data protocol as a client sees it: kick-off, status, manifest, download, delete.

Here live the requests, the typed answers, the checks on what arrives and the knobs of each kind of server. It
knows HTTP and FHIR, but neither the configuration file, nor Dagster, nor the lake, nor how a token is made:
authentication comes in as the `httpx.Auth` of the client that is handed over, a storage account's as a
`StorageAccess`. Only `exchange.py` sends anything; all rules are pure.
"""
