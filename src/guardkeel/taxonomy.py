"""Categories by name. Aegis 2.0 (arXiv:2501.09004) is the home taxonomy: 12 core and 9 fine-grained names.

Codes collide across families (S9 is "PII/Privacy" in one, "Indiscriminate Weapons" in another), so nothing
here or elsewhere is keyed by code: a family turns its codes into names, and `CROSSWALK` turns those names
into home names. A name without a home stays as it is.
"""

from __future__ import annotations

CORE = (
    "Hate/Identity Hate",
    "Sexual",
    "Violence",
    "Suicide and Self Harm",
    "Threat",
    "Sexual (minor)",
    "Guns and Illegal Weapons",
    "Controlled/Regulated Substances",
    "Criminal Planning/Confessions",
    "PII/Privacy",
    "Harassment",
    "Profanity",
)
FINE_GRAINED = (
    "Illegal Activity",
    "Immoral/Unethical",
    "Unauthorized Advice",
    "Political/Misinformation/Conspiracy",
    "Fraud/Deception",
    "Copyright/Trademark/Plagiarism",
    "High Risk Gov Decision Making",
    "Malware",
    "Manipulation",
)
AEGIS2 = CORE + FINE_GRAINED

LLAMA_GUARD_3 = (
    "Violent Crimes",
    "Non-Violent Crimes",
    "Sex-Related Crimes",
    "Child Sexual Exploitation",
    "Defamation",
    "Specialized Advice",
    "Privacy",
    "Intellectual Property",
    "Indiscriminate Weapons",
    "Hate",
    "Suicide & Self-Harm",
    "Sexual Content",
    "Elections",
    "Code Interpreter Abuse",
)

# Names of other taxonomies → home names; the choice is ours. "Other" and the like have no home.
CROSSWALK: dict[str, str] = {
    # Llama Guard 2 to 4 and AILuminate, which share most names
    "Violent Crimes": "Violence",
    "Non-Violent Crimes": "Criminal Planning/Confessions",
    "Sex-Related Crimes": "Sexual",
    "Child Sexual Exploitation": "Sexual (minor)",
    "Defamation": "Harassment",
    "Specialized Advice": "Unauthorized Advice",
    "Privacy": "PII/Privacy",
    "Privacy Violations": "PII/Privacy",
    "Intellectual Property": "Copyright/Trademark/Plagiarism",
    "Intellectual Property Violations": "Copyright/Trademark/Plagiarism",
    "Indiscriminate Weapons": "Guns and Illegal Weapons",
    "Indiscriminate Weapons (CBRNE)": "Guns and Illegal Weapons",
    "Hate": "Hate/Identity Hate",
    "Suicide & Self-Harm": "Suicide and Self Harm",
    "Sexual Content": "Sexual",
    "Elections": "Political/Misinformation/Conspiracy",
    "Code Interpreter Abuse": "Malware",
    # Llama Guard 1
    "Violence & Hate": "Violence",
    "Guns & Illegal Weapons": "Guns and Illegal Weapons",
    "Regulated or Controlled Substances": "Controlled/Regulated Substances",
    "Suicide & Self Harm": "Suicide and Self Harm",
    "Criminal Planning": "Criminal Planning/Confessions",
    # Aegis 1 and NemoGuard
    "Sexual Minor": "Sexual (minor)",
    "Guns/Illegal Weapons": "Guns and Illegal Weapons",
    "Controlled/Regulated substances": "Controlled/Regulated Substances",
    "Controlled Substances": "Controlled/Regulated Substances",
    "Harassment and Threats": "Harassment",
    # Qwen3Guard
    "Violent": "Violence",
    "Non-violent Illegal Acts": "Criminal Planning/Confessions",
    "Sexual Content or Sexual Acts": "Sexual",
    "PII": "PII/Privacy",
    "Unethical Acts": "Immoral/Unethical",
    "Politically Sensitive Topics": "Political/Misinformation/Conspiracy",
    "Copyright Violation": "Copyright/Trademark/Plagiarism",
    # ShieldGemma
    "Dangerous Content": "Violence",
    "Hate Speech": "Hate/Identity Hate",
    "Sexually Explicit Information": "Sexual",
    # Granite Guardian
    "social_bias": "Hate/Identity Hate",
    "violence": "Violence",
    "profanity": "Profanity",
    "sexual_content": "Sexual",
    "unethical_behavior": "Immoral/Unethical",
}


def home(name: str) -> str:
    """The Aegis 2.0 name for a category name, or the name itself where there is none."""
    return CROSSWALK.get(name, name)
