"""Rows that are written and not found: refusals of unsafe prompts, dialogues under a topic's rule.

writing.py    a chat model behind a server that writes: asked once, kept for good, counted and paid within a budget
refusals.py   replies that deflect an unsafe prompt
rules.py      a topic's rule as a guard policy; rows that are judged by it
dialogues.py  dialogues with turns on and off their topic, written by a model or recorded → such rows
templates.py  such rows without any model, from texts that come along and from the categories of the rows themselves
topics.py     the texts that come along
"""
