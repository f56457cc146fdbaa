"""Where guards are run: in this process, on Ray, or in vLLM. The same items give the same batches on each.

settings.py   which engine, how many workers, what each may use
parts.py      items in segments, segments in parts; a part judged by a guard, batch by batch
opening.py    a guard, or a reference and a candidate, by engine
on_ray.py     a guard whose parts are judged by Ray Data actors
worker.py     what runs inside such an actor
moments.py    sums of activations, made where the activations are
"""

from __future__ import annotations
