"""The page of the service: what the ensemble does, whom it trusts, and what waits for a reviewer.

Rendered on the server and readable without scripts; with them it follows what happens and is worked by keyboard.

    access.py    who looks: API keys in a cookie, forms of this page alone
    log.py       what the page asks the store
    history.py   the feedback log replayed: weights over time, loss, regret
    recent.py    the last verdicts: unscored, latency, calls saved, what a flip would change
    review.py    items to look at, and what a reviewer says of them
    figures.py   numbers → the places of lines in a figure
    texts.py     hostile text → something that can be looked at
    board.py     all that is shown, read at most every so often
    render.py    templates
    routes.py    the routes, and under which paths they are
"""
