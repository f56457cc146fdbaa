"""Several judges on one item.

items.py        what is asked about
jurors.py       who is asked: servers, guards on this machine, recorded files
cache.py        every vote that was ever given
asking.py       asking for those that are missing
cost.py         money and time, before and after
pooling.py      votes → labels, by majority and by Dawid–Skene
dawid_skene.py  who is right, and how good each judge is, from votes alone
"""
