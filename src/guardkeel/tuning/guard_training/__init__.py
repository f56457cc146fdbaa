"""Training guards from curated data, after Aegis 2.0 (arXiv:2501.09004): `guardkeel train-guard`.

rows.py         curated sets, suites → labelled sides with who labelled them, and the policies of their own
policies.py     which categories are shown: all, some in another order, a topic's rule
cases.py        rows → cases: what is violated, how much each one counts
preparing.py    base, rows, policies and cases, before any weights are loaded
planning.py     which case is shown under which policy, in which batch
syllabus.py     the plan as lessons; a learner and a trainer for batches of several policies
teaching.py     learner, lessons, probes and monitor of a run
bases.py        what is trained: folders, references, and named bases with terms to accept
opening.py      a base → a guard that can be trained
calibration.py  threshold and offsets from false alarms on calibrate rows
measuring.py    the trained guard on test rows: by side, by who labelled, topics, categories held out
card.py         the model card
estimate.py     what a run will need
run.py          all of it
"""
