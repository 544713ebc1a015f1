"""Whether a report is in English: the one language that the labeller, the section parser and the base models read.

Reports are short ("Kein Pneumothorax."), full of Latin that all languages share, and often without a verb, which is
where general language detectors fail. So words are
counted instead: those that only English reports hold against those that only reports in other languages hold.
"""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W\d_]+")
_LATIN = re.compile(r"[a-zà-öø-ɏµ]+$")  # letters of the Latin alphabet, with their accents; and the micro sign


def _vocabulary(words: str) -> frozenset[str]:
    return frozenset(words.split())


_ENGLISH = _vocabulary(
    """the and are there with to has have had for from not this that which be been by may but than if again although
    both through within
    than over after before since into when been were can cannot could may
    left right lung lungs heart effusion effusions small mild mildly moderate large clear size enlarged unchanged
    seen acute disease evidence
    unremarkable limits silhouette increased decreased opacity opacities edema line tube tip chest view views bony
    bones spine stable
    new old low focal change changes abnormality abnormalities findings finding airspace consolidation fracture
    fractures upper lower middle
    lobe base bases contour contours identified present noted compared prior previous study volumes heart's remains
    pulmonary scarring
    calcified nodule nodules mass likely possible free air under degenerative healed process hernia catheter blunting
    thickening
    tortuous airway markings bilateral without"""
)
_FOREIGN = _vocabulary(
    # German, Dutch
    """kein keine keinen keiner nicht und der die das dem ein eine einer einem mit ohne beidseits rechts links nach
    zum zur auf bei für sind
    rechten linken rechter linker rechte linke vom am infiltrat infiltrate oberlappen unterlappen befund nachweis
    zeichen keinerlei verschattung
    herz lunge lungen unauffällig unauffälliger regelrecht kleiner linksseitig rechtsseitig beidseitig erguss
    pleuraerguss pleuraergüsse herzgröße
    geen het een niet zonder bij hart longen normaal beeld pleuravocht linker rechter aanwijzingen afwijkingen worden
    wordt
    """
    # French, Spanish, Portuguese, Italian, Romanian; Spanish stems as PadChest writes them
    """le les du une sans avec est dans aux droite droit gauche poumon poumons épanchement pneumopathie cardiaque
    taille pulmonaire thoracique normale radiographie
    aucune aucun opacités pleuro
    de el los las sin con del se una por al derrame derram izquierdo izquierda izquierd derecho derecha derech
    hallazgos hallazg patologicos
    patológicos patolog significativas significativos pulmonar pulmonares pulmones pulmon corazón cambios cronicos
    torax tórax radiografía
    não sem com da em uma ao direita esquerda direito esquerdo pulmões coração sinais aumento
    área cardíaca normais alterações
    si di assenza nessun nessuna regolare aumentata quadro gli senza della dei nel alla versamento polmonare polmoni
    destro sinistro destra sinistra ombra cardiaca nei limiti cuore
    fără și este drept stâng
    """
    # Nordic, Slavic, Turkish, Hungarian, Indonesian, Vietnamese
    """ingen ingenting inget och utan ikke uden hjerte hjärta hjärtat lunger lungor høyre venstre vänster höger
    pleuravätska pleuravæske
    bez nie jest oraz płuca płuc serce prawe lewe zmian není plíce srdce výpotek výpotku нет
    ve yok ile bir sağ akciğer akciğerler kalp plevral izlenmedi normaldir nincs szív tüdő
    tidak tampak dan jantung paru efusi không phổi tim
    """
)


def is_english(text: str) -> bool:
    """Whether a report reads as English. A few words that any language holds ("Cardiomegaly.") count as English."""
    words = _WORD.findall(text.lower())
    if not words:
        return True
    if sum(not _LATIN.match(word) for word in words) > 0.3 * len(words):
        return False
    english = sum(word in _ENGLISH for word in words)
    foreign = sum(word in _FOREIGN or not word.isascii() for word in words)  # English has hardly an accent
    return foreign <= english and (len(words) < 8 or english >= 0.1 * len(words))
