"""One consistent table of true facts: countries, chemical elements, animals, inventions and books.

Each row is `subject:value:value`; the columns are named by the relation that asks for them.
"""

from __future__ import annotations

from dataclasses import dataclass

_COUNTRIES = """
France:Paris:Europe|Germany:Berlin:Europe|Italy:Rome:Europe|Spain:Madrid:Europe|Portugal:Lisbon:Europe
Austria:Vienna:Europe|Belgium:Brussels:Europe|Denmark:Copenhagen:Europe|Sweden:Stockholm:Europe|Norway:Oslo:Europe
Finland:Helsinki:Europe|Iceland:Reykjavik:Europe|Ireland:Dublin:Europe|Greece:Athens:Europe|Poland:Warsaw:Europe
Hungary:Budapest:Europe|Romania:Bucharest:Europe|Bulgaria:Sofia:Europe|Croatia:Zagreb:Europe|Serbia:Belgrade:Europe
Ukraine:Kyiv:Europe|Latvia:Riga:Europe|Estonia:Tallinn:Europe|Lithuania:Vilnius:Europe|Slovenia:Ljubljana:Europe
Albania:Tirana:Europe|Malta:Valletta:Europe|Egypt:Cairo:Africa|Kenya:Nairobi:Africa|Ghana:Accra:Africa
Ethiopia:Addis Ababa:Africa|Morocco:Rabat:Africa|Tunisia:Tunis:Africa|Algeria:Algiers:Africa|Nigeria:Abuja:Africa
Uganda:Kampala:Africa|Rwanda:Kigali:Africa|Zambia:Lusaka:Africa|Zimbabwe:Harare:Africa|Angola:Luanda:Africa
Senegal:Dakar:Africa|Sudan:Khartoum:Africa|Somalia:Mogadishu:Africa|Mali:Bamako:Africa|Namibia:Windhoek:Africa
Japan:Tokyo:Asia|China:Beijing:Asia|India:New Delhi:Asia|Thailand:Bangkok:Asia|Vietnam:Hanoi:Asia
Mongolia:Ulaanbaatar:Asia|Nepal:Kathmandu:Asia|Iran:Tehran:Asia|Iraq:Baghdad:Asia|Jordan:Amman:Asia
Lebanon:Beirut:Asia|Syria:Damascus:Asia|Qatar:Doha:Asia|Oman:Muscat:Asia|Indonesia:Jakarta:Asia
Malaysia:Kuala Lumpur:Asia|Cambodia:Phnom Penh:Asia|Laos:Vientiane:Asia|Bangladesh:Dhaka:Asia|Pakistan:Islamabad:Asia
Afghanistan:Kabul:Asia|Uzbekistan:Tashkent:Asia|Canada:Ottawa:North America|Mexico:Mexico City:North America
Cuba:Havana:North America|Jamaica:Kingston:North America|Haiti:Port-au-Prince:North America
Panama:Panama City:North America|Honduras:Tegucigalpa:North America|Nicaragua:Managua:North America
Brazil:Brasilia:South America|Argentina:Buenos Aires:South America|Chile:Santiago:South America
Peru:Lima:South America|Colombia:Bogota:South America|Ecuador:Quito:South America|Uruguay:Montevideo:South America
Paraguay:Asuncion:South America|Venezuela:Caracas:South America|Australia:Canberra:Oceania
New Zealand:Wellington:Oceania|Fiji:Suva:Oceania|Samoa:Apia:Oceania
"""

_ELEMENTS = """
hydrogen:H:1|helium:He:2|lithium:Li:3|beryllium:Be:4|boron:B:5|carbon:C:6|nitrogen:N:7|oxygen:O:8|fluorine:F:9
neon:Ne:10|sodium:Na:11|magnesium:Mg:12|aluminium:Al:13|silicon:Si:14|phosphorus:P:15|sulfur:S:16|chlorine:Cl:17
argon:Ar:18|potassium:K:19|calcium:Ca:20|scandium:Sc:21|titanium:Ti:22|vanadium:V:23|chromium:Cr:24|manganese:Mn:25
iron:Fe:26|cobalt:Co:27|nickel:Ni:28|copper:Cu:29|zinc:Zn:30|gallium:Ga:31|arsenic:As:33|bromine:Br:35|krypton:Kr:36
silver:Ag:47|tin:Sn:50|iodine:I:53|xenon:Xe:54|barium:Ba:56|tungsten:W:74|platinum:Pt:78|gold:Au:79|mercury:Hg:80
lead:Pb:82|radon:Rn:86|radium:Ra:88|uranium:U:92|plutonium:Pu:94
"""

_ANIMALS = """
dog:mammal:puppy|cat:mammal:kitten|cow:mammal:calf|horse:mammal:foal|sheep:mammal:lamb|goat:mammal:kid
pig:mammal:piglet|bear:mammal:cub|lion:mammal:cub|deer:mammal:fawn|kangaroo:mammal:joey|rabbit:mammal:kit
whale:mammal:calf|seal:mammal:pup|hedgehog:mammal:hoglet|bat:mammal:pup|elephant:mammal:calf|hen:bird:chick
duck:bird:duckling|goose:bird:gosling|swan:bird:cygnet|owl:bird:owlet|eagle:bird:eaglet|pigeon:bird:squab
penguin:bird:chick|turkey:bird:poult|crocodile:reptile:hatchling|turtle:reptile:hatchling|snake:reptile:snakelet
frog:amphibian:tadpole|toad:amphibian:tadpole|eel:fish:elver|salmon:fish:fry|trout:fish:fry|shark:fish:pup
moth:insect:caterpillar|butterfly:insect:caterpillar|mosquito:insect:wriggler|bee:insect:larva|ant:insect:larva
"""

_INVENTIONS = """
the telephone:Bell|the light bulb:Edison|dynamite:Nobel|the printing press:Gutenberg|the mercury barometer:Torricelli
the electric battery:Volta|the lightning rod:Franklin|the miner's safety lamp:Davy|the cotton gin:Whitney
the mechanical reaper:McCormick|the sewing machine lockstitch:Howe|vulcanized rubber:Goodyear|the revolver:Colt
the safety elevator:Otis|the diesel engine:Diesel|the air brake:Westinghouse|the stethoscope:Laennec
reading by raised dots:Braille|the first vaccine:Jenner|the pasteurization of milk:Pasteur|penicillin:Fleming
the periodic table:Mendeleev|the law of gravity:Newton|the theory of relativity:Einstein
the mercury thermometer:Fahrenheit|the hot air balloon:Montgolfier|the first airplane:Wright
the World Wide Web:Berners-Lee|the analytical engine:Babbage|the telegraph code:Morse|the X-ray:Rontgen
the polio vaccine:Salk|the pendulum clock:Huygens|the steam locomotive:Trevithick|the spinning jenny:Hargreaves
the gas burner:Bunsen|the induction of currents:Faraday|the laws of heredity:Mendel|the circulation of blood:Harvey
the theory of evolution:Darwin
"""

_BOOKS = """
Hamlet:Shakespeare|Emma:Austen|Oliver Twist:Dickens|Dracula:Stoker|Frankenstein:Shelley|Ulysses:Joyce|Faust:Goethe
Moby Dick:Melville|Walden:Thoreau|Don Quixote:Cervantes|War and Peace:Tolstoy|The Idiot:Dostoevsky
The Cherry Orchard:Chekhov|The Raven:Poe|Leaves of Grass:Whitman|Les Miserables:Hugo|Madame Bovary:Flaubert
Candide:Voltaire|The Divine Comedy:Dante|The Odyssey:Homer|The Aeneid:Virgil|Gulliver's Travels:Swift
Robinson Crusoe:Defoe|Jane Eyre:Bronte|Middlemarch:Eliot|Treasure Island:Stevenson|The Jungle Book:Kipling
The Time Machine:Wells|Peter Pan:Barrie|Pygmalion:Shaw|The Trial:Kafka|The Magic Mountain:Mann
The Scarlet Letter:Hawthorne|Tom Sawyer:Twain|Little Women:Alcott|Heidi:Spyri|Pinocchio:Collodi
Around the World in Eighty Days:Verne|The Three Musketeers:Dumas|A Doll's House:Ibsen
"""


@dataclass(frozen=True)
class Fact:
    """One thing that the table holds to be true: `relation` of `subject` is `value`."""

    relation: str
    subject: str
    value: str


def _facts(table: str, *relations: str) -> list[Fact]:
    rows = [row.strip().split(":") for row in table.replace("\n", "|").split("|") if row.strip()]
    return [
        Fact(relation, subject, value)
        for subject, *values in rows
        for relation, value in zip(relations, values, strict=True)
    ]


FACTS: tuple[Fact, ...] = tuple(
    _facts(_COUNTRIES, "capital", "continent")
    + _facts(_ELEMENTS, "symbol", "number")
    + _facts(_ANIMALS, "kind", "young")
    + _facts(_INVENTIONS, "inventor")
    + _facts(_BOOKS, "author")
)

RELATIONS: tuple[str, ...] = tuple(dict.fromkeys(fact.relation for fact in FACTS))


def facts_of(relation: str) -> list[Fact]:
    """Every fact of one relation, in the table's order."""
    return [fact for fact in FACTS if fact.relation == relation]
