"""`join` by comparing every pair: slow, plain, the yardstick of the fast one."""

from guardkeel.evaluation.suites.near_duplicates import UnionFind, near_duplicates


def all_pairs(texts: list[str]) -> list[int]:
    """The root of each normalised text."""
    sets = UnionFind(len(texts))
    for i, a in enumerate(texts):
        for j in range(i):
            if a and texts[j] and near_duplicates(a, texts[j]):
                sets.union(i, j)
    return sets.roots()
