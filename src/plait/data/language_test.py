import pytest
from datatrove.data import Document

from plait.data.curate_settings import CategorySettings
from plait.data.language import identify, language_step

# Article 1 of the Universal Declaration of Human Rights.
ARTICLES = {
    "en": "All human beings are born free and equal in dignity and rights. They are endowed with "
    "reason and conscience and should act towards one another in a spirit of brotherhood.",
    "ar": "يولد جميع الناس أحراراً متساوين في الكرامة والحقوق. وقد وهبوا عقلاً وضميراً وعليهم أن "
    "يعامل بعضهم بعضاً بروح الإخاء.",
    "zh": "人人生而自由,在尊严和权利上一律平等。他们赋有理性和良心,并应以兄弟关系的精神相对待。",
    "da": "Alle mennesker er født frie og lige i værdighed og rettigheder. De er udstyret med "
    "fornuft og samvittighed, og de bør handle mod hverandre i en broderskabets ånd.",
    "nl": "Alle mensen worden vrij en gelijk in waardigheid en rechten geboren. Zij zijn begiftigd "
    "met verstand en geweten, en behoren zich jegens elkander in een geest van broederschap te "
    "gedragen.",
    "fr": "Tous les êtres humains naissent libres et égaux en dignité et en droits. Ils sont doués "
    "de raison et de conscience et doivent agir les uns envers les autres dans un esprit de "
    "fraternité.",
    "de": "Alle Menschen sind frei und gleich an Würde und Rechten geboren. Sie sind mit Vernunft "
    "und Gewissen begabt und sollen einander im Geist der Brüderlichkeit begegnen.",
    "it": "Tutti gli esseri umani nascono liberi ed eguali in dignità e diritti. Essi sono dotati "
    "di ragione e di coscienza e devono agire gli uni verso gli altri in spirito di fratellanza.",
    "ja": "すべての人間は、生まれながらにして自由であり、かつ、尊厳と権利とについて平等である。",
    "ko": "모든 인간은 태어날 때부터 자유로우며 그 존엄과 권리에 있어 동등하다.",
    "pl": "Wszyscy ludzie rodzą się wolni i równi pod względem swej godności i swych praw. Są oni "
    "obdarzeni rozumem i sumieniem i powinni postępować wobec innych w duchu braterstwa.",
    "pt": "Todos os seres humanos nascem livres e iguais em dignidade e em direitos. Dotados de "
    "razão e de consciência, devem agir uns para com os outros em espírito de fraternidade.",
    "ru": "Все люди рождаются свободными и равными в своем достоинстве и правах. Они наделены "
    "разумом и совестью и должны поступать в отношении друг друга в духе братства.",
    "es": "Todos los seres humanos nacen libres e iguales en dignidad y derechos y, dotados como "
    "están de razón y conciencia, deben comportarse fraternalmente los unos con los otros.",
    "sv": "Alla människor är födda fria och lika i värde och rättigheter. De är utrustade med "
    "förnuft och samvete och bör handla gentemot varandra i en anda av broderskap.",
    "th": "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
}
UNLISTED = {
    "fi": "Kaikki ihmiset syntyvät vapaina ja tasavertaisina arvoltaan ja oikeuksiltaan.",
    "tr": "Bütün insanlar hür, haysiyet ve haklar bakımından eşit doğarlar.",
    "el": "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι και ίσοι στην αξιοπρέπεια και τα δικαιώματα.",
    "uk": "Всі люди народжуються вільними і рівними у своїй гідності та правах.",
}


@pytest.mark.parametrize("code", sorted(ARTICLES))
def test_each_language_is_recognised(code):
    verdict = identify(ARTICLES[code])
    assert (verdict.code, verdict.vote) == (code, code)
    assert verdict.score > 0.5


def test_a_long_text_is_judged_by_all_its_parts():
    front = ARTICLES["de"] + "\n" + ARTICLES["fr"] * 100
    assert identify(front).code == "fr"


@pytest.fixture
def judge(through):
    def verdict(text, **settings):
        category = CategorySettings.parse({"installed": [{}], **settings}, "")
        doc = Document(text, "1", metadata={"category": "c"})
        return through([language_step(category)], doc), doc.metadata

    return verdict


@pytest.mark.parametrize("code", sorted(UNLISTED))
def test_languages_outside_the_list_are_named_so(code, judge):
    assert judge(UNLISTED[code])[0] == "unlisted_language"


def test_a_category_takes_its_languages_only(judge):
    reason, metadata = judge(ARTICLES["de"], languages=["de", "fr"])
    assert reason is None
    assert metadata["language"] == "de"
    assert 0.5 < metadata["language_score"] <= 1
    assert judge(ARTICLES["en"], languages=["de", "fr"])[0] == "other_language"


def test_a_low_score_is_a_reason_of_its_own(judge):
    assert judge(ARTICLES["de"], min_language_score=1.0)[0] == "unsure_language"
