"""After release: what a service logs, and fresh audits, under sequential tests that hold however often one looks."""
