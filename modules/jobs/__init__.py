"""Jobs: what was asked, what became of it, and the one thread that does it.

The room's law: the SQLite table is the truth (store.py); everybody else enqueues and watches by job id. A job is a frozen value: request,
settings, seeds and model names are fixed when it enters. It goes

    pending -> running -> done | failed | cancelled | interrupted

and reaches exactly one end. `interrupted` means that the program stopped under it: it can be taken up again at its first missing picture.
A job under which the program died twice is `parked` and runs again only when somebody insists. Nothing is pickled.
"""
