"""What people and programs meet over HTTP.

    server.py   opens the port, answers signals, loads the rest behind the open port
    door.py     the outer ASGI application: every request passes here first
    guard.py    may this request come in? host, origin, credentials; no input or output
    headers.py  what a browser is told about a reply: content policy with a nonce, and its relatives
    shell.py    the page that is shown while the engine and the real page load
    app.py      page + API -> one ASGI application

Importing server, door, guard, headers and shell loads no torch, no gradio and no fastapi, so the port opens at once.
"""
