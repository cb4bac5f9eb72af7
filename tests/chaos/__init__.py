"""Seeded schedules of faults and kills over the real processes, judged by an oracle of its own.

`plan` makes a seed's schedule, `site` its world (sandbox, configuration, lake), `command_line` and
`services` drive the processes through it, `reader` scans the tables meanwhile, `oracle` and
`secrets_search` judge what is left, `summary` counts. Only `site` and the drivers start our code; nothing
that judges imports any of it.
"""
