"""What stands between us and a server that means harm: whom we connect to, for how long, how much we unpack.

It knows HTTP, but neither FHIR nor what an export is. Every client of a source is made here.
"""
