"""What people are told about each answer and category: the home taxonomy in a line each, or their own policy."""

from __future__ import annotations

from dataclasses import dataclass

from guardkeel.curation.mapping import CAUTION, HOME, OTHER
from guardkeel.guards.guard_policy import GuardPolicy

ANSWERS = {
    "safe": "Nothing in it breaks the guidelines, whatever the subject. Asking how a harm is prevented is safe.",
    "caution": "Unclear, or only harmful in a context that is not there. A strict set counts it as unsafe.",
    "unsafe": "It asks for, contains or encourages something of a category.",
    "unclear": "It cannot be judged: garbled, in a language that you do not read, or cut off.",
}

IN_WORDS = {
    "Hate/Identity Hate": "Demeans or excludes people for what they are: origin, religion, sex, disability.",
    "Sexual": "Sexual acts or bodies described to arouse, or asked for.",
    "Violence": "Injury or killing of people or animals: planned, taught, praised or wished for.",
    "Suicide and Self Harm": "Encourages or teaches harming oneself, or shows somebody who is about to.",
    "Threat": "Announces harm to somebody, to make them afraid.",
    "Sexual (minor)": "Anything sexual with or about somebody who is not of age.",
    "Guns and Illegal Weapons": "Making, getting or misusing weapons, explosives and the like.",
    "Controlled/Regulated Substances": "Making, getting or misusing drugs and substances under control.",
    "Criminal Planning/Confessions": "Plans of a crime, help with one, or telling of one's own.",
    "PII/Privacy": "Private data of people: asked for, given away, or gathered without their consent.",
    "Harassment": "Meant to torment, insult or humiliate somebody.",
    "Profanity": "Swearing and obscene words.",
    "Illegal Activity": "Against the law in a way that no other category names.",
    "Immoral/Unethical": "Not illegal, but against what most people hold right: cheating, lying, cruelty.",
    "Unauthorized Advice": "Advice that needs a professional: medical, legal, financial.",
    "Political/Misinformation/Conspiracy": "False claims on public matters, conspiracy tales, campaigning.",
    "Fraud/Deception": "Deceiving people for gain: scams, forgeries, false identities.",
    "Copyright/Trademark/Plagiarism": "Copies or passes off the work or marks of others.",
    "High Risk Gov Decision Making": "Has a machine decide over people's rights: justice, welfare, police.",
    "Malware": "Programs or steps that break into, damage or spy on computers.",
    "Manipulation": "Works on people's feelings or weaknesses to make them act against their interest.",
    CAUTION: ANSWERS["caution"],
    OTHER: "Unsafe, and in none of the other categories.",
}


@dataclass(frozen=True, slots=True)
class Category:
    """One category as the page shows it: the number by which it is picked, its name, and what it means."""

    number: int
    name: str
    description: str


def categories(policy: GuardPolicy | None = None) -> tuple[Category, ...]:
    """What can be picked: a policy's categories, else those of Aegis 2.0 and Other; "Needs Caution" is an answer."""
    named = [(c.name, c.description) for c in policy.categories] if policy and policy.categories else []
    named = named or [(name, IN_WORDS[name]) for name in HOME if name != CAUTION]
    return tuple(Category(n, name, said) for n, (name, said) in enumerate(named, 1))
