"""What the command line needs beyond calling the library: the screen, and the commands that only it has.

Here lives how things look on a terminal and in a pipe, the public keys as a JWK Set, NDJSON files to tables
without a server, and tables back to NDJSON. Data goes to standard output, words to standard error.
May not live here: protocol, rules about exports, anything that Dagster needs too.
"""
