"""The sandbox's data: R4 resources as a pure function of seed, patients, night and place.

`world` says what exists when, `roster` where the resources of a type are, the modules named for clinical
things make them, `records` reads them. Nothing is stored and no stream is shared: any part can be made alone.
No HTTP here, and nothing of the client side.
"""
