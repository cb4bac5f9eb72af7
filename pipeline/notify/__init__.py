"""Telling people that a run failed or that an export needs somebody.

`notice` is what is told, `occasions` finds what there is to tell from the facts, `webhook` sends, `kinds`
knows every kind of notifier, `memory` remembers in the lake who was told what, `delivery` uses them all.
No Dagster here, and nothing here may fail a tick or a run.
"""
