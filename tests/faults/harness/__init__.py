"""`make faults`: real servers of its own, load from processes of their own, kills and freezes, and an account of every message at the end.

`events` and `account` are pure: what happened goes in, a table and what is known of each offending message come out. `senders`, `receivers`
and `server_app` make the load inside `load`, one process each. `parts` are the servers that can be killed and frozen, `stage` is all of
them together, `faults` their catalogue, `scene` one fault from the first CONNECT to
the account, `backpressure` the one scenario of its own.
"""
