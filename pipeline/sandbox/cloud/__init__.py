"""Stand-ins for the parts of Azure that a run signs in to: Entra, the managed-identity endpoint, Key Vault.

`python -m pipeline.sandbox.cloud` runs them in one process, `process.start_cloud` starts that from Python.
The real azure-identity and azure-keyvault clients work against it with settings of their own (`authority`,
`disable_instance_discovery`, `verify_challenge_resource`). It shares no code with the client side.
"""
