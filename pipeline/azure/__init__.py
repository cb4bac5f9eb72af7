"""Azure, for those who need an identity there: credentials from the configuration, Azure's errors in words.

Lives here: azure-identity credentials, the environment variables that would override them, Key Vault's
client. May not live here: what is stored (`pipeline.lake`), who signs in at a FHIR server (`pipeline.auth`).
"""
