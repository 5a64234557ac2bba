"""The words of the sample corpora: cue words by type, and the small words around them.

Knows which words keep company with which type of name: nouns, adjectives, verbs, actions done
to it, and parts it has. Knows nothing of names, sentences or files. The base that ships is
pretrained on text that uses every cue; each split of a corpus sees a share of its own, so what
tells a type apart in `test` never occurs in `train`.
"""

from __future__ import annotations

from functools import cache
from typing import Final

SPLITS: Final = ("train", "dev", "test")

LABELS: Final[dict[str, tuple[str, ...]]] = {
    "news": ("PER", "ORG", "LOC", "PRODUCT"),
    "biomedical": ("DISEASE", "DRUG", "GENE"),
}

# Cue words, comma separated, by type and role in the sentence:
#   noun  what it is            "Xel, a surgeon"
#   adj   what it is like       "the retired Xel"
#   verb  what it did           "Xel sneezed"
#   act   what was done to it   "a visitor married Xel"
#   part  what belongs to it    "the widow of Xel", "Xel's widow"
_CUES: Final[dict[str, dict[str, str]]] = {
    "PER": {
        "noun": "surgeon, painter, lawyer, drummer, nurse, novelist, goalkeeper, tailor, monk,"
        " violinist, professor, widower, senator, plumber, dancer, poet, sculptor, teacher,"
        " cyclist, judge, carpenter, pianist, grandmother, detective, orphan, chess player,"
        " farmer, baker, actress, coach",
        "adj": "retired, shy, talkative, barefoot, grey-haired, pregnant, elderly, bearded,"
        " jealous, left-handed, widowed, cheerful, homesick, outspoken, newly married, tearful,"
        " well-read, short-sighted, newborn, sleepy",
        "verb": "sneezed, smiled, apologised, blushed, broke a leg, laughed aloud, wept, yawned,"
        " got married, shrugged, fell asleep, whispered a reply, lost an uncle, turned ninety,"
        " took off a hat, gave birth, sat down, frowned, sang a ballad, studied law",
        "act": "married, hugged, arrested, babysat, shook hands with, kissed, interviewed,"
        " fell in love with, buried, dined with, danced with, waved to, adopted, consoled,"
        " divorced, thanked, forgave, argued with, painted a portrait of, woke",
        "part": "widow, childhood, memoirs, left knee, haircut, stepmother, handwriting, smile,"
        " twin sister, wedding, funeral, eyesight, voice, godson, diary, husband, eldest son,"
        " birthday, passport, autobiography",
    },
    "ORG": {
        "noun": "subsidiary, insurer, airline, retailer, trade union, bank, brewery, charity,"
        " start-up, ministry, publisher, regulator, political party, shipbuilder, law firm,"
        " broadcaster, co-operative, consultancy, carmaker, think tank, orchestra, lender,"
        " wholesaler, agency, conglomerate, football club, supplier, foundation, employer,"
        " newspaper",
        "adj": "listed, family-owned, debt-ridden, state-run, unionised, loss-making, non-profit,"
        " multinational, cash-strapped, privately held, bankrupt, newly merged, understaffed,"
        " publicly funded, profitable, diversified, insolvent, tax-exempt, overstaffed,"
        " venture-backed",
        "verb": "went bankrupt, cut jobs, hired a new board, issued bonds, posted a loss,"
        " filed for insolvency, raised its dividend, laid off staff, restructured, went public,"
        " audited its books, paid a fine, elected a chairman, outsourced payroll,"
        " lost its licence, held a shareholder vote, missed its forecast, opened a branch,"
        " recruited interns, settled a lawsuit",
        "act": "bought shares in, sued, joined the board of, merged with, audited, lobbied,"
        " went on strike at, took over, invested in, resigned from, donated to, founded,"
        " applied for a job at, fined, nationalised, worked for, borrowed from, signed a deal with,"
        " chaired, bailed out",
        "part": "shareholders, headquarters, workforce, payroll, quarterly profit, treasurer,"
        " boardroom, annual report, creditors, staff canteen, bondholders, chief executive,"
        " market share, pension fund, legal department, membership, press office, balance sheet,"
        " trainees, turnover",
    },
    "LOC": {
        "noun": "valley, village, island, harbour town, province, river, suburb, desert, peninsula,"
        " mountain, capital, lake, district, bay, seaside resort, canyon, region, oasis, parish,"
        " plateau, county, port, hamlet, glacier, forest, kingdom, delta, borough, volcano,"
        " meadow",
        "adj": "hilly, landlocked, coastal, flooded, densely populated, rainy, uninhabited,"
        " fertile, low-lying, mountainous, snowbound, wooded, sparsely settled, northernmost,"
        " swampy, walled, tropical, arid, drought-stricken, windswept",
        "verb": "flooded, froze over, was evacuated, lay under snow, was shaken by an earthquake,"
        " got ten inches of rain, lost its last inhabitants, ran out of drinking water,"
        " was cut off by landslides, drew many tourists, was hit by a hurricane, declared"
        " independence, baked in the heat, was surrounded by troops, lay in ruins,"
        " shrank to nine houses, was wrapped in fog, gained a railway station,"
        " dried up, was mapped",
        "act": "flew over, moved to, hiked across, settled in, travelled through, sailed past,"
        " camped near, drove into, emigrated from, toured, got lost in, walked around, landed in,"
        " bombarded, was born in, set foot in, cycled to, crossed the border of, spent the summer"
        " in, lived near",
        "part": "coastline, town hall, climate, southern shore, inhabitants, marketplace, skyline,"
        " city walls, wetlands, outskirts, population, main square, airport, vineyards, cathedral,"
        " beaches, foothills, roads, border, old quarter",
    },
    "PRODUCT": {
        "noun": "laptop, toaster, smartphone, sports car, lawnmower, video game, headset, perfume,"
        " wristwatch, printer, vacuum cleaner, camera, soft drink, scooter, razor, tablet computer,"
        " handbag, loudspeaker, hair dryer, board game, dishwasher, shampoo, drone, backpack,"
        " chocolate bar, motorcycle, keyboard, blender, sneaker, sofa",
        "adj": "waterproof, battery-powered, foldable, rechargeable, dishwasher-safe, overpriced,"
        " mass-produced, best-selling, limited-edition, wireless, handheld, refurbished,"
        " solar-powered, user-friendly, second-hand, lightweight, discontinued, sugar-free,"
        " cordless, hand-made",
        "verb": "overheated, sold out, shipped with a flaw, went on sale, broke after a week,"
        " was recalled by its maker, came in a box, got a software update, ran out of battery,"
        " won a design award, cost nine dollars, came with a charger, was discontinued,"
        " fit in a pocket, was assembled by robots, jammed, went through testing, beeped,"
        " was unboxed, needed new batteries",
        "act": "switched on, unwrapped, plugged in, repaired, ordered, unboxed,"
        " returned the faulty, test-drove, assembled, bought a spare, gift-wrapped, charged,"
        " pre-ordered, reviewed, took apart, installed, dusted off, pawned, recharged,"
        " put batteries in",
        "part": "battery, touchscreen, price tag, warranty, power cable, user manual, packaging,"
        " serial number, spare parts, handle, on button, firmware, retail price, lid, barcode,"
        " colour options, charger, resolution, instruction leaflet, plastic casing",
    },
    "DISEASE": {
        "noun": "syndrome, infection, fever, tumour, inflammation, allergy, disorder, rash,"
        " epidemic, anaemia, ulcer, cough, neuropathy, arthritis, dementia, palsy, plague,"
        " migraine, carcinoma, pneumonia, deficiency disease, heart failure, dermatitis, sepsis,"
        " paralysis, phobia, blindness, lymphoma, eczema, sclerosis",
        "adj": "contagious, chronic, airborne, incurable, life-threatening, congenital, tick-borne,"
        " disabling, relapsing, rare childhood, malignant, seasonal, sexually transmitted,"
        " late-onset, terminal, itchy, degenerative, mosquito-borne, undiagnosed, painful",
        "verb": "relapsed, flared up, spread to both lungs, caused vomiting, went into remission,"
        " killed nine patients, worsened at night, left scars, broke out, was cured,"
        " progressed to stage four, led to kidney failure, ran its course, became endemic,"
        " caused joint pain, was eradicated, infected a ward, went undiagnosed,"
        " kept patients in bed, caused a high temperature",
        "act": "was diagnosed with, caught, survived, died of, recovered from, suffered from,"
        " was hospitalised with, lived with, showed symptoms of, was vaccinated against,"
        " contracted, complained of, was bedridden with, screened infants for, was quarantined for,"
        " had a family history of, succumbed to, came down with, tested positive for,"
        " was afflicted by",
        "part": "symptoms, outbreak, incubation period, early signs, prognosis, death toll,"
        " contagion, severity, progression, complications, survivors, onset, remission,"
        " recurrence, incidence, first victims, epidemiology, transmission route, spread,"
        " lesions",
    },
    "DRUG": {
        "noun": "antibiotic, painkiller, tablet, vaccine, ointment, sedative, steroid, lozenge,"
        " anticoagulant, antidepressant, syrup, inhaler, beta blocker, antihistamine, laxative,"
        " capsule, diuretic, statin, eye drop, antacid, opioid, cough mixture, placebo pill,"
        " injection, chemotherapy, infusion, sleeping pill, antiviral, skin cream, supplement",
        "adj": "oral, injectable, over-the-counter, prescription-only, slow-release, generic,"
        " once-daily, addictive, intravenous, low-dose, sugar-coated, well-tolerated, chewable,"
        " topical, overprescribed, unlicensed, water-soluble, effervescent, bitter-tasting,"
        " short-acting",
        "verb": "was prescribed, was swallowed with water, relieved the pain, lowered blood"
        " pressure, was taken off pharmacy shelves, dissolved in the stomach, caused drowsiness,"
        " was administered twice a day, wore off, received approval, passed a phase three trial,"
        " was dispensed, came in blister packs, outperformed placebo, was withdrawn from sale,"
        " reached its peak dose, was infused over an hour, eased the itching, lost its patent,"
        " was taken before meals",
        "act": "swallowed, took, was treated with, injected, prescribed, overdosed on, stopped"
        " taking, was given, responded to, administered, refused, dispensed, was sedated with,"
        " was weaned off, inhaled, doubled the dose of, missed a dose of, got a prescription for,"
        " tapered, was allergic to",
        "part": "dose, side effects, half-life, tablets, package insert, dosage, manufacturer,"
        " bioavailability, prescription, efficacy, active ingredient, shelf life, overdose,"
        " patent, toxicity, refills, injection site, plasma concentration, contraindications,"
        " bitter taste",
    },
    "GENE": {
        "noun": "oncogene, promoter, allele, kinase, transcription factor, receptor, enhancer,"
        " homolog, repressor, histone, membrane protein, paralog, telomerase, ligase, tumour"
        " suppressor, polymerase, pseudogene, enzyme, ion channel, locus, protease, cofactor,"
        " transporter, regulator protein, isoform, helicase, messenger RNA, growth factor,"
        " cytokine, chaperone",
        "adj": "mutated, recessive, overexpressed, methylated, X-linked, truncated, dominant,"
        " phosphorylated, highly conserved, silenced, heterozygous, duplicated, non-coding,"
        " upregulated, transcribed, mitochondrial, spliced, downregulated, frameshifted,"
        " homozygous",
        "verb": "was sequenced, was transcribed, bound to chromatin, was knocked out in mice,"
        " encoded a protein, mapped to chromosome nine, was overexpressed in yeast, mutated,"
        " was spliced, lost an exon, was amplified by PCR, regulated cell division,"
        " was phosphorylated, was cloned, carried a deletion, activated transcription,"
        " was silenced by methylation, formed a dimer, was expressed in the embryo,"
        " was conserved in zebrafish",
        "act": "sequenced, cloned, knocked out, overexpressed, spliced, amplified, edited,"
        " inherited a copy of, silenced, genotyped, measured expression of, carried two copies of,"
        " mapped, deleted, found a mutation in, transfected, annotated, purified,"
        " stained cells for, designed primers for",
        "part": "exons, coding region, locus on the chromosome, transcripts, binding domain,"
        " mutations, expression level, promoter region, reading frame, orthologs, introns,"
        " splice variants, knockout phenotype, amino acid sequence, methylation,"
        " downstream targets, copy number, polymorphisms, catalytic site, base pairs",
    },
}

# Words with capitals that name nothing of interest, and other small fillers.
_FILLERS: Final[dict[str, str]] = {
    "day": "Monday, Tuesday, Wednesday, Thursday, Friday, Saturday, Sunday",
    "month": "January, February, March, April, May, June, July, August, September, October,"
    " November, December",
    "cap": "Nordic, Alpine, Baltic, Latin, Asian, Arctic, Celtic, Iberian, Slavic, African,"
    " Western, Pacific, Balkan, Andean, Roman, Gothic",
    "acr": "GDP, FAQ, DNA, CEO, ATM, VAT, HR, IQ, UTC, BMI, MRI, ICU, PCR, ECG, PhD, DIY",
    "adv": "quietly, again, at last, for the first time, without warning, by accident, once more,"
    " in the end, as expected, in secret, twice, after all, by then, all the same, on purpose,"
    " slowly",
    "who": "a visitor, the team, one of them, nobody, a neighbour, the committee, a friend,"
    " everyone, the group, an observer, each of us, somebody, a guest, the other one,"
    " a volunteer, the last of them",
    "thing": "the weather, the schedule, the question, the rumour, the result, the delay,"
    " the debate, the figure, the plan, the letter, the noise, the idea, the meeting,"
    " the answer, the list, the mistake",
    "emoji": "🙂, 🎉, 🚀, ☕, 🧬, 📰, 💊, 🌧️",
}
FILLERS: Final = {kind: tuple(words.split(", ")) for kind, words in _FILLERS.items()}

# Every fifth cue goes to dev, two in five to train, two in five to test.
_SHARE: Final[dict[str, tuple[int, ...]]] = {"train": (0, 1), "dev": (2,), "test": (3, 4)}


@cache
def cues(label: str, role: str, pool: str) -> tuple[str, ...]:
    """The cue words of a type in a role, as many as `pool` may use.

    `pool` is a split, or "pretraining", which uses all of them.
    """
    words = tuple(word.strip() for word in _CUES[label][role].split(","))
    if pool == "pretraining":
        return words
    return tuple(word for i, word in enumerate(words) if i % 5 in _SHARE[pool])
