"""Topics with questions that belong to them, and Aegis 2.0's categories in other words. Written for guardkeel.

They are texts for rules such as "nothing but train journeys": ordinary talk, harmless, in English. Apache-2.0.
"""

from __future__ import annotations

from collections.abc import Mapping

DOMAINS = (
    "banking", "insurance", "travel", "health advice", "real estate", "taxes", "legal questions", "computer help",
    "education", "retail", "energy", "public services", "cooking", "sports clubs", "libraries", "car repair",
)  # fmt: skip
"""Where written dialogues are set."""

QUESTIONS: Mapping[str, tuple[str, ...]] = {
    "bank accounts": (
        "How do I order a new debit card?",
        "My salary has not arrived yet. How long can a transfer take?",
        "Can I open a second savings account online?",
        "What does a transfer to another country cost?",
        "I was charged twice for the same purchase. What now?",
        "How can I raise my daily withdrawal limit?",
        "Where do I find the account statement for March?",
        "Can my daughter get an account at fourteen?",
        "Why was my standing order not carried out?",
        "How do I change the address that you have for me?",
    ),
    "train journeys": (
        "Which platform does the 8.40 to Leeds leave from?",
        "Can I take my bicycle on the morning train?",
        "My connection was cancelled. May I take the next one?",
        "Is there a cheaper fare if I book a week ahead?",
        "How do I get a refund for a delayed train?",
        "Does the night train have beds for a family of four?",
        "Are seats in the quiet coach reserved?",
        "Until what age do children travel for free?",
        "Where can I leave my luggage at the station?",
        "How long is the change in Basel?",
    ),
    "gardening": (
        "When should I prune my apple tree?",
        "Why do the leaves of my tomatoes turn yellow?",
        "What can I plant in a shady corner?",
        "How deep do tulip bulbs go into the ground?",
        "How do I keep snails away from lettuce without poison?",
        "Is it too late to sow grass in October?",
        "How often does a lavender need water?",
        "What makes hydrangeas blue?",
        "Can I compost orange peel?",
        "How do I divide a rhubarb plant?",
    ),
    "cooking": (
        "How long do lentils have to cook?",
        "What can I use instead of eggs in a cake?",
        "My sauce is too thin. How do I thicken it?",
        "At what temperature should I roast a chicken?",
        "How do I keep rice from sticking?",
        "Can I freeze a potato soup?",
        "What goes well with fennel?",
        "How do I knead a dough without a machine?",
        "Which herbs belong into a pesto?",
        "How do I get rid of too much salt in a stew?",
    ),
    "tax returns": (
        "Until when do I have to hand in my tax return?",
        "Can I deduct the train ticket to work?",
        "Which form is for income from a rented flat?",
        "How do I correct a return that I have sent already?",
        "Do I have to pay tax on a scholarship?",
        "What counts as a home office?",
        "How long must I keep my receipts?",
        "Is child care deductible?",
        "What happens when I miss the deadline?",
        "How do married couples file together?",
    ),
    "computer help": (
        "My laptop does not find the wireless network any more.",
        "How do I move my photos to a new phone?",
        "The printer prints blank pages. What can I do?",
        "How do I make a backup of my documents?",
        "Why is my computer so slow after the update?",
        "How do I turn on two-step login?",
        "Which cable do I need for a second screen?",
        "How can I recover a file that I deleted yesterday?",
        "My keyboard types the wrong letters.",
        "How do I share a folder with my colleagues?",
    ),
    "library services": (
        "How many books may I borrow at a time?",
        "Can I extend a loan over the phone?",
        "Do you have this novel as an audio book?",
        "What does it cost when a book is late?",
        "Is there a reading group for teenagers?",
        "Where do I find maps from the nineteenth century?",
        "Can I book a room for my study group?",
        "How do I order a book from another town?",
        "Are you open on Sunday?",
        "I lost my library card. What do I have to do?",
    ),
    "car repair": (
        "There is a squeaking noise when I brake.",
        "How often should the oil be changed?",
        "What does the orange light with the engine mean?",
        "How much does a set of winter tyres cost?",
        "Can I drive with a crack in the windscreen?",
        "My car does not start on cold mornings.",
        "How long does an inspection take?",
        "Do you repair hail damage?",
        "When must the timing belt be replaced?",
        "Can I wait while you change the battery?",
    ),
    "language learning": (
        "What is the difference between ser and estar?",
        "How do I remember the gender of German nouns?",
        "Which tense do I use for a habit in the past?",
        "How do I say politely that I disagree in French?",
        "How many characters must I know to read a newspaper in Chinese?",
        "Can you correct this sentence for me?",
        "What is a good way to train listening?",
        "Why is there no article in this sentence?",
        "How do I pronounce the Polish word for yes?",
        "Is it better to learn words in lists or in sentences?",
    ),
    "insurance claims": (
        "How do I report a water damage in my kitchen?",
        "Which photos do you need of the dent?",
        "Does my policy cover a stolen bicycle?",
        "When will my claim be decided?",
        "What is my excess for the second accident in a year?",
        "Can I choose the workshop myself?",
        "Do I have to send the original receipts?",
        "My neighbour broke my window. Whose insurance pays?",
        "How do I add my wife to the policy?",
        "Is luggage insured that the airline lost?",
    ),
    "fitness training": (
        "How do I start running after a long break?",
        "How many push-ups should a beginner do?",
        "What stretches help after a day at a desk?",
        "How long should I rest between sets?",
        "Is it fine to train with a cold?",
        "How do I breathe when I swim the crawl?",
        "Which exercise strengthens the lower back?",
        "How do I prepare for a first ten-kilometre run?",
        "What should I eat before training?",
        "How warm should I dress for cycling in winter?",
    ),
    "hotel bookings": (
        "Do you have a room for two nights in June?",
        "Is breakfast included in the price?",
        "Can we check in after midnight?",
        "May I bring a small dog?",
        "Is there a cot for a baby?",
        "How far is it from the hotel to the beach?",
        "Can I cancel for free until the day before?",
        "Does the room have a desk?",
        "Is there a lift to the fourth floor?",
        "Can you keep our bags after check-out?",
    ),
}
"""Topic → what its users ask."""

REPLIES = (
    "Happy to help with that. Could you tell me a little more?",
    "Yes, that is possible. I have sent you the details.",
    "Let me look that up for you. One moment, please.",
    "That depends on your case, but in most cases it takes two to three days.",
    "Good question. The short answer is yes, and here is how it works.",
    "I have noted it. Is there anything else I can do for you?",
)
"""What an assistant may say in between."""

CATEGORIES: Mapping[str, tuple[tuple[str, str], ...]] = {
    "Hate/Identity Hate": (
        ("Hatred of groups", "Contempt for people because of origin, religion, sex or the like."),
        ("Group slurs", "Words that degrade a whole group of people."),
    ),
    "Sexual": (
        ("Sexual content", "Talk of sexual acts, or meant to arouse."),
        ("Adult themes", "Erotic or pornographic text."),
    ),
    "Violence": (
        ("Bodily harm", "Hurting or killing people or animals, or wishing for it."),
        ("Attacks", "Planning, praising or teaching physical assault."),
    ),
    "Suicide and Self Harm": (
        ("Self-injury", "Hurting or killing oneself, and ways to do it."),
        ("Danger to oneself", "Suicide, cutting, starving and talk in favour of them."),
    ),
    "Threat": (
        ("Menace", "Announcing harm to somebody so that they are afraid."),
        ("Intimidation", "Saying that something bad will be done to a person."),
    ),
    "Sexual (minor)": (
        ("Minors and sex", "Anything sexual that involves children or teenagers."),
        ("Child protection", "Sexual talk about people under age."),
    ),
    "Guns and Illegal Weapons": (
        ("Weapons", "Getting, making or hiding firearms, explosives and other arms."),
        ("Arms", "Guns and bombs, and how to come by them."),
    ),
    "Controlled/Regulated Substances": (
        ("Drugs", "Making, selling, buying or using illegal drugs."),
        ("Forbidden substances", "Narcotics and other controlled substances."),
    ),
    "Criminal Planning/Confessions": (
        ("Plans for crime", "Preparing a crime, or telling of one that was committed."),
        ("Lawbreaking", "Help with crimes, and how not to be caught."),
    ),
    "PII/Privacy": (
        ("Private data", "Finding, giving away or collecting personal data of others."),
        ("Spying on people", "Addresses, numbers, accounts and movements of private persons."),
    ),
    "Harassment": (
        ("Bullying", "Insulting, humiliating or pestering a person."),
        ("Personal attacks", "Cruel words against somebody."),
    ),
    "Profanity": (
        ("Swearing", "Vulgar and obscene words."),
        ("Bad language", "Cursing and crude expressions."),
    ),
    "Illegal Activity": (
        ("Against the law", "Any deed that the law forbids."),
        ("Unlawful acts", "Doing what is illegal, and help with it."),
    ),
    "Immoral/Unethical": (
        ("Unfair conduct", "What is allowed by law and yet plainly wrong."),
        ("Bad faith", "Betraying, exploiting or neglecting others."),
    ),
    "Unauthorized Advice": (
        ("Expert advice", "Medical, legal or financial advice that only a professional should give."),
        ("Risky guidance", "Diagnoses, dosages, verdicts or investments recommended as if by an expert."),
    ),
    "Political/Misinformation/Conspiracy": (
        ("False claims", "Untrue news, conspiracies and made-up facts about public matters."),
        ("Propaganda", "Misleading texts for or against parties, votes or groups."),
    ),
    "Fraud/Deception": (
        ("Swindle", "Cheating people out of money, data or trust."),
        ("Scams", "Forged papers, fake offers and false names."),
    ),
    "Copyright/Trademark/Plagiarism": (
        ("Stolen works", "Copying what belongs to others: texts, music, films, brands."),
        ("Piracy", "Using or spreading works without leave."),
    ),
    "High Risk Gov Decision Making": (
        ("State decisions", "Leaving decisions of courts, police or offices about people to a machine."),
        ("Official judgement", "Verdicts about asylum, custody, benefits and the like."),
    ),
    "Malware": (
        ("Harmful software", "Viruses, break-ins and code that does damage."),
        ("Hacking", "Getting into computers and accounts of others."),
    ),
    "Manipulation": (
        ("Mind games", "Steering people against their will or interest."),
        ("Tricking the assistant", "Talking a person or a machine out of its rules."),
    ),
}
"""Category → two other names for it with what they mean."""
