"""Building guard data, after Aegis 2.0 (arXiv:2501.09004): sources in, a labelled, split and documented set out.

rows.py         Row: one conversation with the provenance of its text and of every label; its JSONL
formats/        data sets as they were released: read into rows, written back
readers.py      sources (files, references, suites, chat logs) → rows, with what had to be left out
writers.py      rows → JSON, JSONL, CSV or Parquet, in any of the formats
minhash.py      which of many texts are nearly the same, in bounded memory
dedup.py        rows that say the same become one, which remembers the others
redaction.py    personal data → typed placeholders
mapping.py      category names of other taxonomies → Aegis 2.0; labels of a dialogue → labels of its sides
jury/           several judges on one item: asking, keeping, pooling, and what it costs
agreement.py    how far judges agree, and how good each is
splits.py       fit / calibrate / test without leaks, also against suites
card.py         the data card
config.py       the pipeline as one TOML file
steps/          what the pipeline does, a file a step
pipeline.py     the steps in order, each made once
"""
